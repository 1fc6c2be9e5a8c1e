/**
 * Weights in 4 and 8 bits, on host arrays: NF4 in blocks with double quantisation (Dettmers et al. 2023, "QLoRA", section 3 and appendix E),
 * and 8 bits a row (Dettmers et al. 2022, "LLM.int8()", section 2.1, vector-wise). The codes are bitsandbytes', bit for bit. A layer with such a
 * weight is `quantized-linear.ts`.
 */
import { FinetuneError } from "./errors.ts";

/**
 * The sixteen values of NF4: quantiles of a standard normal distribution scaled to −1 … 1, with an exact 0 (QLoRA, appendix E; the
 * digits are bitsandbytes').
 */
export const nf4Code: Float32Array = Float32Array.of(
  -1,
  -0.6961928009986877,
  -0.5250730514526367,
  -0.39491748809814453,
  -0.28444138169288635,
  -0.18477343022823334,
  -0.09105003625154495,
  0,
  0.07958029955625534,
  0.16093020141124725,
  0.24611230194568634,
  0.33791524171829224,
  0.44070982933044434,
  0.5626170039176941,
  0.7229568362236023,
  1,
);

/** Scales of 4-bit blocks that are themselves quantised, in blocks of this many. */
const scaleBlock = 256;

/**
 * The 256 values in which the scales of blocks are stored: a sign, a decimal exponent of 0 … 6 in unary, and a linear fraction in what bits
 * are left (Dettmers 2015, "8-Bit Approximations for Parallelism in Deep Learning", section 3). Ascending, with 0 and 1.
 */
export function dynamicCode(): Float32Array {
  const values: number[] = [0, 1];
  for (let exponent = 0; exponent < 7; exponent++) {
    const boundaries = evenly(0.1, 1, 2 ** exponent + 1);
    for (let i = 0; i + 1 < boundaries.length; i++) {
      const middle = Math.fround(Math.fround(boundaries[i] + boundaries[i + 1]) / 2);
      const value = Math.fround(Math.fround(10 ** (exponent - 6)) * middle);
      values.push(value, -value);
    }
  }
  return Float32Array.from(values).sort();
}

/** Numbers at equal distances in float32, counted from the nearer end and rounded once each, as torch.linspace does. */
function evenly(start: number, end: number, count: number): Float32Array {
  const [from, to] = [Math.fround(start), Math.fround(end)];
  const step = Math.fround(Math.fround(to - from) / (count - 1));
  return Float32Array.from({ length: count }, (_, i) =>
    i < Math.floor(count / 2) ? Math.fround(from + step * i) : Math.fround(to - step * (count - 1 - i)),
  );
}

/** Between which values of a code one changes to the next; a value on the border takes the lower. */
const bordersOf = (code: Float32Array): Float32Array =>
  Float32Array.from({ length: code.length - 1 }, (_, i) => Math.fround(Math.fround(code[i] + code[i + 1]) / 2));

/** Cells of −1 … 1 in which the search for a border begins. */
const cells = 1024;

/** How many borders lie before each cell, and the cell before it too: a number near −1 + k · 2 / cells is rounded into either. */
function startsOf(borders: Float32Array): Uint8Array {
  const starts = new Uint8Array(cells + 1);
  for (let cell = 0, low = 0; cell <= cells; cell++) {
    while (low < borders.length && borders[low] < ((cell - 1) * 2) / cells - 1) low++;
    starts[cell] = low;
  }
  return starts;
}

/** Blocks scaled by their largest magnitude, each element the number of the nearest value of `code`. */
function quantizeBlocks(given: ArrayLike<number>, block: number, code: Float32Array) {
  // of one kind, so that the loops below are compiled for it; what else is given may be wider
  const values =
    given instanceof Float64Array ? given : given instanceof Float32Array ? given : Float64Array.from(given);
  const borders = Float64Array.of(...bordersOf(code), Number.POSITIVE_INFINITY);
  const starts = startsOf(bordersOf(code));
  const codes = new Uint8Array(values.length);
  const absmax = new Float32Array(Math.ceil(values.length / block));
  for (let b = 0; b < absmax.length; b++) {
    const end = Math.min(values.length, (b + 1) * block);
    let largest = 0;
    let sum = 0; // NaN where an element is not finite
    for (let i = b * block; i < end; i++) {
      const size = Math.abs(values[i]);
      sum += size - size;
      if (size > largest) largest = size;
    }
    if (sum !== 0) throw notFinite(values, b * block);
    absmax[b] = largest;
    const inverse = Math.fround(1 / Math.max(absmax[b], 1e-38));
    for (let i = b * block; i < end; i++) {
      const x = Math.min(1, Math.max(-1, Math.fround(values[i] * inverse)));
      // the first border that is not below x: the number of the nearest value
      let low = starts[((x + 1) * (cells / 2)) | 0];
      while (borders[low] < x) low++;
      codes[i] = low;
    }
  }
  return { codes, absmax };
}

function notFinite(values: Float32Array | Float64Array, from: number): FinetuneError {
  const i = from + values.subarray(from).findIndex((x) => !Number.isFinite(x));
  return new FinetuneError(
    `quantize: element ${i} is ${values[i]}; only finite weights can be quantised, so the checkpoint is damaged or diverged`,
  );
}

/** Scales as they are, or, doubly quantised, as 8-bit numbers of dynamicCode with a scale a block of 256 and their mean. */
export type BlockScales =
  | { readonly kind: "float32"; readonly absmax: Float32Array }
  | {
      readonly kind: "dynamic8";
      readonly codes: Uint8Array;
      readonly absmax: Float32Array;
      readonly offset: number;
    };

export interface NF4Weights {
  /** Two elements a byte, the first in the upper half. */
  readonly packed: Uint8Array;
  /** Number of elements. */
  readonly size: number;
  /** Elements that share a scale. */
  readonly block: number;
  readonly scales: BlockScales;
}

/**
 * Numbers as NF4 in blocks of `block` (64 by default), the scales quantised again if `doubleQuant` (which saves 0.37 bits an element). Throws
 * FinetuneError for a NaN or infinity.
 */
export function quantizeNF4(
  values: ArrayLike<number>,
  options: { readonly block?: number; readonly doubleQuant?: boolean } = {},
): NF4Weights {
  const { block = 64, doubleQuant = false } = options;
  if (!Number.isInteger(block) || block < 2 || block % 2 !== 0)
    throw new FinetuneError(`quantizeNF4: block must be an even whole number, got ${block}; QLoRA's is 64`);
  const { codes, absmax } = quantizeBlocks(values, block, nf4Code);
  const packed = new Uint8Array(Math.ceil(codes.length / 2));
  // an odd number of elements is filled up with a 0, whose code is 7
  for (let i = 0; i < packed.length; i++) packed[i] = (codes[2 * i] << 4) | (codes[2 * i + 1] ?? 7);
  const scales: BlockScales = doubleQuant ? quantizeScales(absmax) : { kind: "float32", absmax };
  return { packed, size: values.length, block, scales };
}

function quantizeScales(scales: Float32Array): BlockScales {
  const offset = Math.fround(scales.reduce((sum, x) => sum + x, 0) / scales.length);
  const centred = scales.map((x) => x - offset);
  return { kind: "dynamic8", offset, ...quantizeBlocks(centred, scaleBlock, dynamicCode()) };
}

/** The scales of the blocks in float32. */
export function blockScales(scales: BlockScales): Float32Array {
  if (scales.kind === "float32") return scales.absmax;
  const code = dynamicCode();
  return Float32Array.from(scales.codes, (c, i) =>
    Math.fround(Math.fround(code[c] * scales.absmax[Math.floor(i / scaleBlock)]) + scales.offset),
  );
}

/** The numbers that NF4 weights stand for. */
export function dequantizeNF4({ packed, size, block, scales }: NF4Weights): Float32Array {
  const absmax = blockScales(scales);
  return Float32Array.from({ length: size }, (_, i) => {
    const byte = packed[i >> 1];
    return nf4Code[i % 2 === 0 ? byte >> 4 : byte & 15] * absmax[Math.floor(i / block)];
  });
}

export interface Int8Weights {
  /** [rows, columns], 128 for 0. */
  readonly codes: Uint8Array;
  /** The largest magnitude of each row. */
  readonly absmax: Float32Array;
}

/** A matrix [rows, columns] in 8 bits: each row is scaled so that its largest magnitude is 127, and rounded. */
export function quantizeInt8(values: ArrayLike<number>, rows: number, columns: number): Int8Weights {
  if (values.length !== rows * columns)
    throw new FinetuneError(`quantizeInt8: ${values.length} elements are no matrix of ${rows} × ${columns}`);
  const codes = new Uint8Array(values.length);
  const absmax = new Float32Array(rows);
  for (let r = 0; r < rows; r++) {
    for (let i = r * columns; i < (r + 1) * columns; i++) {
      if (!Number.isFinite(values[i]))
        throw new FinetuneError(`quantizeInt8: row ${r} holds ${values[i]}; only finite weights can be quantised`);
      absmax[r] = Math.max(absmax[r], Math.abs(values[i]));
    }
    const scale = absmax[r] === 0 ? 0 : Math.fround(127 / absmax[r]);
    for (let i = r * columns; i < (r + 1) * columns; i++)
      codes[i] = 128 + (Math.fround(Math.fround(values[i] * scale) + toEven) - toEven);
  }
  return { codes, absmax };
}

/** 1.5 · 2²³: added in single precision it leaves no room for fractions, and a half goes to the even side. */
const toEven = 12582912;

/** The numbers that 8-bit weights [rows, columns] stand for. */
export function dequantizeInt8({ codes, absmax }: Int8Weights): Float32Array {
  const columns = codes.length / absmax.length;
  return Float32Array.from(codes, (c, i) => ((c - 128) * absmax[Math.floor(i / columns)]) / 127);
}
