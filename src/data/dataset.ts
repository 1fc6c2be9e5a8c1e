/**
 * What a data set is (a length, and a sample by index), the arrays that batches are made of, and the data set over
 * arrays. No tensors here: the tensor layer wraps what comes out.
 */
import { type DType, dtypes, type TypedArray } from "../core/dtype.ts";
import { NablaError } from "../core/errors.ts";
import { type Shape, showShape, sizeOf } from "../core/shape.ts";

/** Samples or options that can't be made into batches. */
export class LoaderError extends NablaError {
  override name = "LoaderError";
}

/** An array on the host: raw elements (the 16-bit floats as their bits), row-major. */
export interface HostArray {
  readonly dtype: DType;
  readonly shape: Shape;
  readonly data: TypedArray;
}

/** What a batch is before the tensor layer wraps it: one array for each part of a sample. */
export type Batch = readonly HostArray[];

/**
 * How a worker gets a data set of its own: it imports `module` (a file: URL, as `import.meta.url` gives) and calls its
 * export `name` with `data`, which must survive structured cloning. That function returns a data set, or a data set
 * with a collate function: `{ dataset, collate }`. Arrays over SharedArrayBuffers are not copied.
 */
export interface WorkerSource {
  readonly module: string;
  readonly name: string;
  readonly data: unknown;
}

export interface Dataset<T> {
  readonly length: number;
  /** The sample at 0 ≤ index < length. */
  get(index: number): T | Promise<T>;
  /** A whole batch at once, where that is faster than sample by sample. */
  batch?(indices: Int32Array): Batch;
  /** Needed only for a loader with workers. */
  worker?(): WorkerSource;
}

const dtypeOfArray: readonly (readonly [new (n: number) => TypedArray, DType])[] = [
  [Float32Array, "float32"],
  [Float64Array, "float64"],
  [Int32Array, "int32"],
  [Uint32Array, "uint32"],
  [Uint8Array, "uint8"],
];

/**
 * A host array from a typed array, whose dtype follows (Uint16Array: say "float16" or "bfloat16"), checked against its
 * shape ([length] by default). Throws LoaderError.
 */
export function hostArray(data: TypedArray, shape: Shape = [data.length], dtype?: DType): HostArray {
  const type = dtype ?? dtypeOfArray.find(([array]) => data instanceof array)?.[1];
  if (type === undefined || !(data instanceof dtypes[type].array))
    throw new LoaderError(`a ${data?.constructor?.name} is no array of ${type ?? "a known dtype; name the dtype"}`);
  if (sizeOf(shape) !== data.length)
    throw new LoaderError(`shape ${showShape(shape)} has ${sizeOf(shape)} elements, the array has ${data.length}`);
  return { dtype: type, shape, data };
}

/** The raw elements of a dtype over a part of a buffer. */
export function viewOf(dtype: DType, buffer: ArrayBufferLike, byteOffset: number, length: number): TypedArray {
  return new dtypes[dtype].array(buffer, byteOffset, length);
}

/** A new raw array for `length` elements. */
const allocate = (dtype: DType, length: number) =>
  viewOf(dtype, new ArrayBuffer(length * dtypes[dtype].bytes), 0, length);

/** The name by which workers find `openArrayDataset`. */
const openerName = "openArrayDataset";

/**
 * Samples along the first axis of one or several arrays (images and labels, say); torch's TensorDataset over host
 * arrays. A sample is a list of arrays of the remaining shapes, views of the whole. Throws LoaderError.
 */
export class ArrayDataset implements Dataset<Batch> {
  readonly arrays: readonly HostArray[];
  readonly length: number;
  readonly #rows: readonly number[]; // elements of one sample, for each array

  constructor(...arrays: readonly HostArray[]) {
    if (arrays.length === 0 || arrays.some(({ shape }) => shape.length === 0))
      throw new LoaderError("an ArrayDataset needs at least one array, each with a first axis to count samples along");
    this.length = arrays[0].shape[0];
    for (const { shape } of arrays)
      if (shape[0] !== this.length)
        throw new LoaderError(
          `an ArrayDataset's arrays must have as many samples each: ${arrays.map((a) => showShape(a.shape)).join(", ")}`,
        );
    this.arrays = arrays;
    this.#rows = arrays.map(({ shape }) => sizeOf(shape.slice(1)));
  }

  get(index: number): Batch {
    return this.arrays.map(({ dtype, shape, data }, k) => {
      const row = this.#rows[k];
      return { dtype, shape: shape.slice(1), data: data.subarray(index * row, (index + 1) * row) };
    });
  }

  batch(indices: Int32Array): Batch {
    return this.arrays.map(({ dtype, shape, data }, k) => {
      const row = this.#rows[k];
      const out = allocate(dtype, indices.length * row);
      for (let i = 0; i < indices.length; i++)
        out.set(data.subarray(indices[i] * row, (indices[i] + 1) * row), i * row);
      return { dtype, shape: [indices.length, ...shape.slice(1)], data: out };
    });
  }

  /** The arrays move to shared memory for this (once; a copy, unless they already are there). */
  worker(): WorkerSource {
    const shared = this.arrays.map(({ dtype, shape, data }) => {
      if (data.buffer instanceof SharedArrayBuffer) return { dtype, shape, data };
      const copy = viewOf(dtype, new SharedArrayBuffer(data.byteLength), 0, data.length);
      copy.set(data);
      return { dtype, shape, data: copy };
    });
    return { module: import.meta.url, name: openerName, data: shared };
  }
}

/** What a worker calls to open an ArrayDataset (see `worker`). */
export function openArrayDataset(arrays: readonly HostArray[]): ArrayDataset {
  return new ArrayDataset(...arrays);
}

/** What a sample may consist of: arrays of equal shape in every sample; a number becomes float32, a boolean bool. */
export type SampleItem = HostArray | TypedArray | number | boolean;

const isHostArray = (x: unknown): x is HostArray =>
  typeof x === "object" && x !== null && "dtype" in x && "shape" in x && "data" in x;

function itemArray(item: unknown, where: string): HostArray {
  if (isHostArray(item)) return hostArray(item.data, item.shape, item.dtype);
  if (typeof item === "number") return { dtype: "float32", shape: [], data: Float32Array.of(item) };
  if (typeof item === "boolean") return { dtype: "bool", shape: [], data: Uint8Array.of(item ? 1 : 0) };
  if (ArrayBuffer.isView(item) && !(item instanceof DataView)) return hostArray(item as TypedArray);
  throw new LoaderError(
    `${where}: can't put ${item === null ? "null" : typeof item} into a batch; expected { dtype, shape, data }, a typed array, a number or a boolean, or give a collate function`,
  );
}

/**
 * Stacks samples along a new first axis (torch's default_collate). A sample is one item or a list of items. Labels
 * should be { dtype: "int32", shape: [], data }: a bare number is float32. Throws LoaderError where samples differ.
 */
export function stackSamples(samples: readonly unknown[]): Batch {
  const parts = samples.map((sample, i) =>
    (Array.isArray(sample) ? sample : [sample]).map((item, k) => itemArray(item, `sample ${i}, item ${k}`)),
  );
  return parts[0].map(({ dtype, shape, data }, k) => {
    const out = allocate(dtype, parts.length * data.length);
    parts.forEach((part, i) => {
      const item = part[k];
      if (part.length !== parts[0].length || item.dtype !== dtype || showShape(item.shape) !== showShape(shape))
        throw new LoaderError(
          `the batch's sample ${i} differs from its first: item ${k} is ${item === undefined ? "missing" : `${item.dtype} ${showShape(item.shape)}`}, ` +
            `expected ${dtype} ${showShape(shape)}; pad the samples to one shape, or give a collate function`,
        );
      out.set(item.data, i * data.length);
    });
    return { dtype, shape: [parts.length, ...shape], data: out };
  });
}

/** Reads the samples of a batch and makes it. */
export async function makeBatch<T>(
  dataset: Dataset<T>,
  indices: Int32Array,
  collate: ((samples: T[]) => Batch | Promise<Batch>) | undefined,
): Promise<Batch> {
  if (collate === undefined && dataset.batch !== undefined) return dataset.batch(indices);
  const samples: T[] = [];
  for (const index of indices) samples.push(await dataset.get(index));
  return collate === undefined ? stackSamples(samples) : collate(samples);
}
