/**
 * Which commands compute a contraction: the choice between the runtime's matrix products, their block sizes, packed
 * buffers and scratch. Pure arithmetic on shapes; the parameters' meaning is in runtime/gemm.c.
 *
 * Everything here depends on shapes and on the micro-kernel's shape only, never on the number of threads, so that a
 * result has the same bits at any number of threads.
 */
import type { DType } from "../../core/dtype.ts";
import { dtypes } from "../../core/dtype.ts";
import { DTypeError } from "../../core/errors.ts";
import type { BuiltinName, KernelShape } from "./native.ts";
import { streamGrain } from "./plans.ts";

/** Buffers of a contraction's commands, to be bound by the caller. */
export type ContractBuffer = "a" | "b" | "packed" | "out" | "asum";

/** A command without its buffers' addresses. */
export interface CommandDesc<Buffer extends string = ContractBuffer> {
  readonly fn: BuiltinName;
  readonly rows: number;
  readonly grain: number;
  readonly buffers: readonly Buffer[];
  readonly params: readonly number[];
}

export interface ContractDesc {
  /** Batch axes, at most four after merging. */
  readonly batch: readonly number[];
  readonly M: number;
  readonly N: number;
  readonly K: number;
  /** Element strides: batch axes, m, k. */
  readonly a: { readonly dtype: DType; readonly strides: readonly number[] };
  /** Element strides: batch axes, k, n; batch strides of 0 share B. */
  readonly b: { readonly dtype: DType; readonly strides: readonly number[] };
  /** B is float32 in memory and counts as it is when rounded to bfloat16; of one batch, and of more rows than skinnyRows. */
  readonly rounds?: boolean;
  readonly out: "float32" | "float64" | "int32";
  /** An attached epilogue gets the finished tiles and stores them: there is no "out" buffer then. float32 only. */
  readonly hasEpilogue?: boolean;
  /** An attached post command runs on finished blocks of `rowBlock` rows of C [batch * M, N]. float32 only. */
  readonly hasPost?: boolean;
  /** Also write the sums of A over k, to "asum" [batch * M]. float32 only. */
  readonly asum?: boolean;
  /** Add to what C holds (no epilogue). */
  readonly accumulate?: boolean;
}

export interface ContractPlan {
  /** Bytes of the "packed" buffer; 0 where B is read as it lies. */
  readonly packed: number;
  /** Fills "packed"; to run in an earlier phase than `main`. */
  readonly pack?: CommandDesc;
  readonly main: CommandDesc;
  /** A post command gets rows [i * rowBlock, min((i + 1) * rowBlock, batch * M)) for every i. */
  readonly rowBlock: number;
  /** Scratch that a worker needs. */
  readonly scratchBytes: number;
}

const ceilDiv = (a: number, b: number): number => Math.ceil(a / b);
const roundUp = (a: number, b: number): number => ceilDiv(a, b) * b;
const product = (a: readonly number[]): number => a.reduce((x, y) => x * y, 1);

/** Aimed at: this many tiles, of at least this many floating-point operations. */
const WANTED_TILES = 16;
const MIN_TILE_FLOP = 2e6;
/** A right side of more elements is beyond the caches. */
export const LARGE = 2 ** 23;
/** Where there would be so many even then, tiles have twice the rows: a panel of B comes from memory half as often. */
const MANY_TILES = 48;
const ACCUMULATE = 1;
const ROW_SUMS = 2;
const B_IN_PLACE = 4;
const STREAM_C = 8;
/** Tiles of the same columns follow one another: where B is large it is then read once for all of them. */
const DOWN_FIRST = 16;
/** The runtime's type of float32 that is rounded as it is read (BF16_OF_F32 in runtime/runtime.h). */
const ROUNDED = 15;
/** A result of this many bytes is written past the caches: its lines would be fetched to be written over, and leave again. */
const STREAM_BYTES = 2 ** 21;

/** Length of a block of K: even blocks, a multiple of 8, such that a panel of B stays near the core. */
export function kBlock(shape: KernelShape, K: number): number {
  const most = shape.lanes === 16 ? 512 : 256;
  return Math.max(8, roundUp(ceilDiv(K, ceilDiv(Math.max(K, 1), most)), 8));
}

/** Rows and columns of a gemm's tile. With `post` a tile spans all columns. */
export function gemmTile(
  shape: KernelShape,
  size: { M: number; N: number; K: number; batches?: number; transposedA?: boolean; post?: boolean },
): { mc: number; nc: number } {
  const { M, N, K, post, batches = 1 } = size;
  const { mr, nr } = shape;
  // packing a transposed strip is paid once a column block: fewer and wider ones (with AVX-512 it is read in place)
  const packs = size.transposedA && shape.lanes < 16;
  const tilesOf = (rows: number, columns: number) => ceilDiv(M, rows) * ceilDiv(N, columns) * batches;
  let mc = roundUp(packs ? 48 : 96, mr);
  let nc = post ? roundUp(N, nr) : roundUp(packs ? 768 : 384, nr);
  if (!packs && !post && tilesOf(2 * mc, nc) >= MANY_TILES) mc *= 2;
  const even = () => {
    mc = roundUp(ceilDiv(M, ceilDiv(M, mc)), mr);
    nc = roundUp(ceilDiv(N, ceilDiv(N, nc)), nr);
  };
  even();
  while (tilesOf(mc, nc) < WANTED_TILES && 2 * Math.min(mc, M) * Math.min(nc, N) * K > 2 * MIN_TILE_FLOP) {
    if (!post && nc > nr && (nc >= 2 * mc || mc <= mr)) nc = roundUp(nc / 2, nr);
    else if (mc > mr) mc = roundUp(mc / 2, mr);
    else break;
    even();
  }
  return { mc, nc };
}

/** Which kernel serves a float32 product. */
export function chooseGemm(
  shape: KernelShape,
  size: { M: number; N: number; K: number; batches: number; sharedB: boolean; hasPost?: boolean },
): "gemm" | "gemm_skinny" | "gemm_small" {
  const { M, N, K, batches } = size;
  if (M <= shape.skinnyRows && !size.hasPost) return "gemm_skinny";
  if (!size.sharedB && batches >= 4 && N * K <= 1 << 16 && 2 * M * N * K <= 3.2e7) return "gemm_small";
  return "gemm";
}

interface Axis {
  size: number;
  a: number;
  b: number;
}

/** Batch axes without those of size 1, neighbours merged where both operands allow it. */
function mergeAxes(desc: ContractDesc): Axis[] {
  const axes: Axis[] = [];
  desc.batch.forEach((size, i) => {
    if (size === 1) return;
    const axis = { size, a: desc.a.strides[i]!, b: desc.b.strides[i]! };
    const last = axes.at(-1);
    if (last && last.a === axis.a * size && last.b === axis.b * size) {
      last.size *= size;
      last.a = axis.a;
      last.b = axis.b;
    } else axes.push(axis);
  });
  return axes;
}

/** The commands of C = A · B, their packed buffer and scratch. Throws DTypeError on types that no kernel takes. */
export function planContract(shape: KernelShape, desc: ContractDesc): ContractPlan {
  const { K, N } = desc;
  const nb = desc.batch.length;
  let M = desc.M;
  let am = desc.a.strides[nb]!;
  let ak = desc.a.strides[nb + 1]!;
  let bk = desc.b.strides[nb]!;
  let bn = desc.b.strides[nb + 1]!;
  const half = (d: DType) => d === "float32" || d === "float16" || d === "bfloat16";
  const fits =
    desc.out === "float32"
      ? half(desc.a.dtype) && half(desc.b.dtype)
      : desc.a.dtype === desc.out && desc.b.dtype === desc.out;
  if (!import.meta.forBrowsers && !fits)
    throw new DTypeError(
      `contract: no kernel for ${desc.a.dtype} x ${desc.b.dtype} -> ${desc.out}; cast the operands first`,
    );
  if (!import.meta.forBrowsers && desc.out !== "float32" && (desc.hasEpilogue || desc.hasPost || desc.asum))
    throw new DTypeError(`contract: epilogue, post and asum exist for float32 results, not for ${desc.out}`);

  const axes = mergeAxes(desc);
  // rows of several batches that share B are rows of one product
  for (let last = axes.at(-1); last && last.b === 0 && (M === 1 || last.a === M * am); last = axes.at(-1)) {
    if (M === 1) am = last.a;
    M *= last.size;
    axes.pop();
  }
  if (axes.length > 4)
    throw new DTypeError(`contract: ${axes.length} separate batch axes; at most 4, copy an operand first`);
  // a stride of an axis of length 1 means nothing: choose the one that reads fastest
  if (K === 1) {
    ak = 1;
    bk = bn === 1 ? bk : 1;
  }
  if (N === 1 && bk !== 1) bn = 1;
  if (M === 1 && ak !== 1) am = am === 1 ? 1 : am;

  const batches = product(axes.map((x) => x.size));
  const kb = kBlock(shape, K);
  // epilogues, sums of rows, and products that are added, streamed or read in place are the native runtime's
  const flags = import.meta.forBrowsers ? 0 : (desc.accumulate ? ACCUMULATE : 0) | (desc.asum ? ROW_SUMS : 0);
  const adt = dtypes[desc.a.dtype].code;
  const bdt = !import.meta.forBrowsers && desc.rounds ? ROUNDED : dtypes[desc.b.dtype].code;
  const base = (mc: number, nc: number, flag = 0) => [
    ...[M, N, K, am, ak, adt, mc, nc, kb, flags | flag, bk, bn, bdt],
    axes.length,
  ];
  const direct = axes.flatMap((x) => [x.size, x.a, x.b]);
  const outputs: ContractBuffer[] = import.meta.forBrowsers
    ? ["out"]
    : [...(desc.hasEpilogue ? [] : (["out"] as const)), ...(desc.asum ? (["asum"] as const) : [])];
  const { mr, nr } = shape;
  const panels = ceilDiv(N, nr);
  // both sides bfloat16, and pairs of them in one instruction
  const pairs =
    !import.meta.forBrowsers &&
    shape.bf16 === true &&
    desc.a.dtype === "bfloat16" &&
    (desc.b.dtype === "bfloat16" || desc.rounds === true) &&
    !(desc.hasEpilogue || desc.asum || desc.accumulate);
  const transposedA = am === 1 && ak !== 1 && desc.a.dtype === "float32";
  /** Floats of a gemm tile's own scratch: at most a copy of A's strip and the partial sums. */
  const room = (mc: number, nc: number) =>
    roundUp(mc, mr) * (kb + 16) +
    (!import.meta.forBrowsers && desc.hasEpilogue && K > kb ? roundUp(mc, mr) * roundUp(nc, nr) : 0);

  if (desc.out !== "float32") {
    const { mc, nc } = gemmTile(shape, { M, N, K, batches });
    return {
      packed: 0,
      main: {
        fn: desc.out === "float64" ? "gemm_f64" : "gemm_i32",
        rows: ceilDiv(M, mc) * ceilDiv(N, nc) * batches,
        grain: 1,
        buffers: ["a", "b", "out"],
        params: [...base(mc, nc), ...direct],
      },
      rowBlock: mc,
      scratchBytes: 8 * 256 * (roundUp(mc, 4) + 32),
    };
  }

  const kind = chooseGemm(shape, { M, N, K, batches, sharedB: axes.every((x) => x.b === 0), hasPost: desc.hasPost });
  if (kind === "gemm_skinny") {
    return {
      packed: 0,
      main: {
        fn: kind,
        rows: ceilDiv(N, shape.skinnyColumns) * batches,
        grain: bk === 1 ? streamGrain(shape.skinnyColumns * K * dtypes[desc.b.dtype].bytes) : 1,
        buffers: ["a", "b", ...outputs],
        params: [...base(0, 0), ...direct],
      },
      rowBlock: M,
      scratchBytes: 4 * (roundUp(M * K, 16) + K * shape.skinnyColumns + 64),
    };
  }
  if (kind === "gemm_small") {
    return {
      packed: 0,
      main: { fn: kind, rows: batches, grain: 1, buffers: ["a", "b", ...outputs], params: [...base(M, N), ...direct] },
      rowBlock: M,
      scratchBytes: 4 * (roundUp(K, 16) * panels * nr + roundUp(K * N, 16) + room(M, N)),
    };
  }
  const tile = gemmTile(shape, { M, N, K, batches, transposedA, post: desc.hasPost });
  // blocks of rows must not straddle batches in two different ways: the caller counts them as [batch * M] / rowBlock
  if (desc.hasPost && batches > 1 && M % tile.mc !== 0) tile.mc = M;
  const { mc, nc } = tile;
  const streams =
    !import.meta.forBrowsers &&
    4 * M * N * batches >= STREAM_BYTES &&
    K <= kb &&
    N % shape.lanes === 0 &&
    !desc.accumulate &&
    !desc.hasEpilogue &&
    !desc.hasPost;
  const downFirst = !import.meta.forBrowsers && N * K > LARGE;
  const main = (buffer: "b" | "packed", flag: number, strides: readonly number[]): CommandDesc => ({
    fn: pairs ? "gemm_bf16" : kind,
    rows: ceilDiv(M, mc) * ceilDiv(N, nc) * batches,
    grain: 1,
    buffers: ["a", buffer, ...outputs],
    params: [...base(mc, nc, flag | (streams ? STREAM_C : 0) | (downFirst ? DOWN_FIRST : 0)), ...strides],
  });
  // the last columns are then a whole panel or half of one, never beyond B
  const panelsFit = N % (nr / 2) === 0;
  if (
    !import.meta.forBrowsers &&
    shape.lanes === 16 &&
    transposedA &&
    bn === 1 &&
    panelsFit &&
    desc.b.dtype === "float32"
  )
    return { packed: 0, main: main("b", B_IN_PLACE, direct), rowBlock: mc, scratchBytes: 4 * room(mc, nc) };
  const own = axes.filter((x) => x.b !== 0);
  const packedOne = (pairs ? Math.ceil(K / 2) : K) * panels * nr;
  const packedBatches = product(own.map((x) => x.size));
  let stride = packedBatches * packedOne;
  const packedStride = new Map(own.map((x) => [x, (stride /= x.size)]));
  const packTiles = ceilDiv(Math.max(K, 1), kb) * (bn === 1 ? ceilDiv(kb, 64) : ceilDiv(panels, 4));
  return {
    packed: 4 * packedOne * packedBatches,
    pack: {
      fn: pairs ? "pack_bf16" : "pack_b",
      rows: packTiles * packedBatches,
      grain: 1,
      buffers: ["b", "packed"],
      params: [K, N, bk, bn, bdt, kb, packTiles, own.length, ...own.flatMap((x) => [x.size, 0, x.b])],
    },
    main: main(
      "packed",
      0,
      axes.flatMap((x) => [x.size, x.a, packedStride.get(x) ?? 0]),
    ),
    rowBlock: mc,
    scratchBytes: 4 * Math.max(room(mc, nc), bdt === dtypes.float32.code ? 0 : Math.max(8 * N, nr * kb)),
  };
}
