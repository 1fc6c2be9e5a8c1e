/**
 * The commands of a two-dimensional convolution and its gradients, channels last: tiles, packed weights, scratch. Pure
 * arithmetic on shapes, like contract.ts; the parameters' meaning is in runtime/conv.c.
 */
import { ShapeError } from "../../core/errors.ts";
import type { CommandDesc } from "./contract.ts";
import type { KernelShape } from "./native.ts";
import type { Plan } from "./plans.ts";

const roundUp = (a: number, b: number): number => Math.ceil(a / b) * b;

export interface Conv2dDesc {
  /** x is [N, H, W, Cin], y is [N, OH, OW, Cout], channels last and contiguous. */
  readonly N: number;
  readonly H: number;
  readonly W: number;
  readonly Cin: number;
  readonly Cout: number;
  readonly kernel: readonly [number, number];
  readonly stride: readonly [number, number];
  readonly padding: readonly [number, number];
  readonly dilation: readonly [number, number];
  readonly groups: number;
  /** Element strides of the weight [Cout, Cin / groups, kh, kw]. */
  readonly weightStrides: readonly [number, number, number, number];
  /** An attached epilogue stores the tiles (rows are pixels, columns channels); forward only. */
  readonly hasEpilogue?: boolean;
  readonly accumulate?: boolean;
  /** A kernel behind each tile; not of a strided input gradient. */
  readonly post?: ConvPost;
}

/** A kernel that runs on the rows of whole lines of the result while they are in cache. */
export interface ConvPost {
  /** Lines a tile, of one image: they divide its height. */
  readonly lines: number;
  /** Where nobody else reads the result: its number among the kernel's buffers, and how many these are. */
  readonly own?: readonly [number: number, buffers: number];
}

/** As MOST_BUFFERS in conv.c. */
export const MOST_POST_BUFFERS = 64;
/** Most memory for the lines of one tile that a kernel runs behind: half of a small second-level cache. */
const MAX_POST_BYTES = 256 << 10;

/**
 * Lines a tile for a kernel behind it that takes the [OH, OW, OC] result of each of N images by `unit` lines, or null
 * where tiles would be too large, or too few to share out.
 */
export function postLines(N: number, OH: number, OW: number, OC: number, unit: number): number | null {
  const fits = (lines: number): boolean => 4 * lines * OW * OC <= MAX_POST_BYTES && N * (OH / lines) >= 16;
  const choices = Array.from({ length: OH }, (_, i) => i + 1).filter(
    (lines) => OH % lines === 0 && lines % unit === 0 && fits(lines),
  );
  const enough = choices.find((lines) => lines * OW >= 196);
  return enough ?? choices.at(-1) ?? null;
}

export interface ConvPlan<Buffer extends string> extends Plan<Buffer> {
  /** Rows of the result a tile, as pixels; for what runs behind. */
  readonly tilePixels: number;
  /** Bytes of the "packed" buffer, which `pack` fills in an earlier phase. */
  readonly packed: number;
  readonly pack: CommandDesc<"weight" | "packed">;
}

/** Height and width of the result. */
export function convOutput(desc: Conv2dDesc): [number, number] {
  const size = (n: number, i: 0 | 1) =>
    Math.floor((n + 2 * desc.padding[i] - desc.dilation[i] * (desc.kernel[i] - 1) - 1) / desc.stride[i]) + 1;
  return [size(desc.H, 0), size(desc.W, 1)];
}

/** Along one axis: outputs start + i * step (count of them) read the source at first + i * move + u * tap for u < taps. */
interface Phase {
  start: number;
  step: number;
  count: number;
  first: number;
  move: number;
  taps: number;
  tap: number;
  /** Kernel index of tap u: k0 + u * dk. */
  k0: number;
  dk: number;
}

const gcd = (a: number, b: number): number => (b ? gcd(b, a % b) : a);

/** The input gradient along one axis: for each residue of the input position, a dense convolution over the output. */
function gradientPhases(size: number, kernel: number, stride: number, padding: number, dilation: number): Phase[] {
  const phases: Phase[] = [];
  const common = gcd(stride, dilation);
  for (let start = 0; start < Math.min(stride, size); start++) {
    // kernel indices k with (start + padding - k * dilation) divisible by the stride, from the last (the first source)
    const ks = Array.from({ length: kernel }, (_, k) => k).filter(
      (k) => (start + padding - k * dilation) % stride === 0,
    );
    const k0 = ks.at(-1) ?? 0;
    phases.push({
      start,
      step: stride,
      count: Math.ceil((size - start) / stride),
      first: (start + padding - k0 * dilation) / stride,
      move: 1,
      taps: ks.length,
      tap: dilation / common,
      k0,
      dk: -(stride / common),
    });
  }
  return phases.map((p) => (p.taps ? p : { ...p, first: 0, dk: 0 }));
}

function convPlan<Source extends string, Out extends string>(
  shape: KernelShape,
  desc: Conv2dDesc,
  names: { fn: "conv2d_fwd" | "conv2d_dx"; source: Source; out: Out },
  source: { H: number; W: number; C: number },
  out: { H: number; W: number; C: number },
  phases: [Phase, Phase][],
  channel: { n: number; c: number },
): ConvPlan<Source | Out | "packed"> {
  const { N, groups, weightStrides: ws } = desc;
  const { mr, nr } = shape;
  const panels = Math.ceil(out.C / groups / nr);
  const { post } = desc;
  let tilePixels = 0;
  let packed = 0;
  let scratch = 0;
  let tiles = 0;
  const words = phases.flatMap(([y, x]) => {
    const at = packed;
    packed += groups * panels * nr * y.taps * x.taps * (source.C / groups);
    // about 196 pixels a tile: lines of an image, or several small images; then fewer channels until there are 16 tiles
    const pixels = Math.max(y.count * x.count, 1);
    const most = !post ? N : post.lines < y.count ? 1 : Math.floor(N / 16);
    const images = Math.max(1, Math.min(most, Math.round(196 / pixels)));
    let lines = post?.lines ?? Math.max(1, Math.min(y.count, Math.round(196 / Math.max(x.count, 1))));
    let block = roundUp(out.C / groups, nr);
    const count = () => Math.ceil(N / images) * Math.ceil(y.count / lines) * Math.ceil(out.C / groups / block);
    while (!post && count() * phases.length < 16) {
      if (block > 64 && block > nr) block = roundUp(block / 2, nr);
      else if (images === 1 && lines > 1) lines = Math.ceil(lines / 2);
      else break;
    }
    const mine = x.count ? count() : 0;
    tilePixels = images * lines * x.count;
    tiles += mine;
    const height = (lines - 1) * y.move + Math.max(y.taps - 1, 0) * y.tap + 1;
    const width = Math.max(x.count - 1, 0) * x.move + Math.max(x.taps - 1, 0) * x.tap + 1;
    scratch = Math.max(
      scratch,
      roundUp(tilePixels, mr) * (nr + 4) +
        (post?.own ? tilePixels * out.C : 0) +
        images * height * width * source.C +
        64,
    );
    return [
      ...[
        y.start,
        x.start,
        y.step,
        x.step,
        y.count,
        x.count,
        y.first,
        x.first,
        y.move,
        x.move,
        y.taps,
        x.taps,
        y.tap,
        x.tap,
      ],
      ...[y.k0, y.dk, x.k0, x.dk, at, lines, images, block, mine],
    ];
  });
  const head = [
    N,
    source.H,
    source.W,
    source.C,
    out.H,
    out.W,
    out.C,
    groups,
    desc.accumulate ? 1 : 0,
    channel.n,
    channel.c,
    ws[2],
    ws[3],
    phases.length,
    post?.own?.[0] ?? -1,
    post?.own?.[1] ?? 0,
  ];
  return {
    tilePixels,
    packed: 4 * Math.max(packed, 16),
    pack: {
      fn: "conv_pack",
      rows: phases.length * groups * panels,
      grain: 1,
      buffers: ["weight", "packed"],
      params: [...head, (desc.Cout / groups) * ws[0], ...words],
    },
    main: {
      fn: names.fn,
      rows: tiles,
      grain: 1,
      buffers: desc.hasEpilogue || post?.own ? [names.source, "packed"] : [names.source, "packed", names.out],
      params: [...head, ...words],
    },
    scratchBytes: 4 * scratch,
  };
}

function checkConv(desc: Conv2dDesc): [number, number] {
  const { Cin, Cout, groups } = desc;
  if (!import.meta.forBrowsers && (groups < 1 || Cin % groups || Cout % groups))
    throw new ShapeError(`conv2d: ${Cin} input and ${Cout} output channels do not divide into ${groups} groups`);
  const [OH, OW] = convOutput(desc);
  if (OH < 1 || OW < 1)
    throw new ShapeError(
      `conv2d: the kernel ${desc.kernel.join("x")} does not fit into ${desc.H}x${desc.W} with padding ${desc.padding.join("x")}`,
    );
  return [OH, OW];
}

/** y = conv2d(x, weight), torch.nn.functional.conv2d without bias (that is an epilogue's). */
export function planConv2d(shape: KernelShape, desc: Conv2dDesc): ConvPlan<"x" | "packed" | "y"> {
  const [OH, OW] = checkConv(desc);
  const axis = (i: 0 | 1, count: number): Phase => ({
    start: 0,
    step: 1,
    count,
    first: -desc.padding[i],
    move: desc.stride[i],
    taps: desc.kernel[i],
    tap: desc.dilation[i],
    k0: 0,
    dk: 1,
  });
  const [s0, s1] = desc.weightStrides;
  return convPlan(
    shape,
    desc,
    { fn: "conv2d_fwd", source: "x", out: "y" },
    { H: desc.H, W: desc.W, C: desc.Cin },
    { H: OH, W: OW, C: desc.Cout },
    [[axis(0, OH), axis(1, OW)]],
    { n: s0, c: s1 },
  );
}

/** dx from dy and the weight (torch.nn.grad.conv2d_input); also the forward pass of a transposed convolution. */
export function planConv2dInput(shape: KernelShape, desc: Conv2dDesc): ConvPlan<"dy" | "packed" | "dx"> {
  const [OH, OW] = checkConv(desc);
  if (!import.meta.forBrowsers && desc.hasEpilogue)
    throw new ShapeError("conv2d: the input gradient takes no epilogue");
  if (desc.post && (desc.stride[0] > 1 || desc.stride[1] > 1))
    throw new ShapeError("conv2d: the input gradient of a strided convolution takes no kernel behind it");
  const axis = (i: 0 | 1, size: number) =>
    gradientPhases(size, desc.kernel[i], desc.stride[i], desc.padding[i], desc.dilation[i]);
  const [s0, s1] = desc.weightStrides;
  const columns = axis(1, desc.W);
  return convPlan(
    shape,
    desc,
    { fn: "conv2d_dx", source: "dy", out: "dx" },
    { H: OH, W: OW, C: desc.Cout },
    { H: desc.H, W: desc.W, C: desc.Cin },
    axis(0, desc.H).flatMap((y) => columns.map((x): [Phase, Phase] => [y, x])),
    { n: s1, c: s0 },
  );
}

/** How a weight gradient's x is brought near, as WAY_… in conv.c. */
const ways = { lines: 0, images: 1, gather: 2, strips: 3 };

/** Most memory for the partial sums of a weight gradient. */
const MAX_PARTIAL_BYTES = 16 << 20;

/** dw from x and dy (torch.nn.grad.conv2d_weight): partial sums over parts of the batch, then `finish` in a later phase. */
export function planConv2dWeight(
  shape: KernelShape,
  desc: Conv2dDesc,
): Plan<"x" | "dy" | "partial"> & { readonly partial: number; readonly finish: CommandDesc<"partial" | "dw"> } {
  const [OH, OW] = checkConv(desc);
  const { N, H, W, Cin, Cout, kernel, stride, padding, dilation, groups } = desc;
  const [kh, kw] = kernel;
  const bytes = 4 * kh * kw * (Cin / groups) * Cout;
  const { mr, nr } = shape;
  const inner = Cin / groups;
  const outer = Cout / groups;
  const taps = kh * kw * inner;
  const isJoined = groups === 1 && dilation[1] === 1;
  /** Of the micro-kernel's rows, how many do something. */
  const use = (rows: number): number => rows / roundUp(rows, mr);
  // few panels to share a strip among would not pay for packing it
  const skips = stride[1] > (kw - 1) * dilation[1] + 1 && outer > 3 * nr;
  const way = skips
    ? ways.strips
    : taps <= 256 && use(taps) > 1.15 * use(isJoined ? kw * inner : inner)
      ? ways.gather
      : kh > 1 && OH >= 4 && N >= 16 && 16 * bytes <= MAX_PARTIAL_BYTES
        ? ways.images
        : ways.lines;
  const together = way === ways.gather || way === ways.images;
  const rows = way === ways.gather ? taps : way === ways.strips || isJoined ? kw * inner : inner;
  const mostParts = Math.max(1, Math.min(N, 16, Math.floor(MAX_PARTIAL_BYTES / bytes)));
  let parts = 1;
  let block = Math.min(roundUp(outer, nr), way === ways.strips ? 8 * nr : outer + nr);
  let rowBlock = rows;
  const tiles = (): number =>
    parts * (together ? 1 : kh) * groups * Math.ceil(rows / rowBlock) * Math.ceil(outer / block);
  while (tiles() < 16) {
    if (way === ways.strips && rowBlock > 6 * mr) rowBlock = roundUp(rowBlock / 2, mr);
    else if (way !== ways.strips && block > 64 && block > nr) block = roundUp(block / 2, nr);
    else if (parts < mostParts) parts = Math.min(2 * parts, mostParts);
    else break;
  }
  const width = (OW - 1) * stride[1] + (kw - 1) * dilation[1] + 1;
  const lines = Math.max(1, Math.min(N * OH, Math.floor((together || way === ways.strips ? 256 : 512) / OW)));
  const pieces = Math.ceil(lines / OH) + 1;
  const near = {
    [ways.lines]: lines * width * Cin,
    [ways.images]: (lines * stride[0] + pieces * ((kh - 1) * dilation[0] + 1)) * width * Cin,
    [ways.gather]: width * Cin + lines * OW * taps,
    [ways.strips]: lines * OW * mr,
  }[way] as number;
  const params = [
    ...[N, H, W, Cin, OH, OW, Cout, groups, kh, kw, ...stride, ...padding, ...dilation],
    ...[parts, block, lines, ...desc.weightStrides, way, rowBlock],
  ];
  return {
    partial: parts * bytes,
    main: {
      fn: "conv2d_dw",
      rows: tiles(),
      grain: 1,
      buffers: ["x", "dy", "partial"],
      params,
    },
    finish: { fn: "conv2d_dw_finish", rows: Cout, grain: 16, buffers: ["partial", "dw"], params },
    // the micro-kernel reads whole rows beyond the last
    scratchBytes: 4 * (lines * OW * block + near + mr + 64),
  };
}
