/**
 * Keys and values of the tokens that a decoder has seen, so that the next token costs one position instead of the whole text.
 * The memory has a fixed size and the number of tokens in it is a runtime number: one program serves every length.
 */
import { allocateRaw, type DType } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import type { Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { asState, fromRaw, Tensor, tensor } from "../tensor/index.ts";
import { write } from "../tensor/tensor.ts";

export interface CacheOptions {
  readonly numLayers: number;
  readonly batchSize: number;
  readonly numKeyValueHeads: number;
  readonly headDim: number;
  /** The most tokens that it holds. */
  readonly capacity: number;
  /** How many positions in front of each row hold no token of it, so that rows of unlike lengths end together. Default: none. */
  readonly padding?: readonly number[];
  readonly dtype: DType;
  readonly device: string;
}

/** What a model that makes its own cache leaves open. */
export type CreateCacheOptions = Partial<Pick<CacheOptions, "batchSize" | "capacity" | "padding">>;

/** The keys and values of one layer, each [batch, key-value heads, capacity, head width]. */
interface Layer {
  readonly keys: Tensor;
  readonly values: Tensor;
}

/** Where tokens go in a cache: as numbers of the graph, so that one program serves every length. */
export interface CachePlace {
  readonly cache: KeyValueCache;
  /** int32 scalars: how many tokens stand before these, and with them. */
  readonly start: Node;
  readonly end: Node;
  /** How long the text is of which these tokens are a part: angles may depend on it. */
  readonly textLength: number;
}

export class KeyValueCache {
  readonly capacity: number;
  readonly batchSize: number;
  readonly layers: readonly Layer[];
  /** int32 [batch]: where each row's text begins; null where all begin at 0. */
  readonly begins: Tensor | null;
  #length = 0;

  constructor(options: CacheOptions) {
    const { numLayers, batchSize, numKeyValueHeads, headDim, capacity, dtype, device } = options;
    for (const [name, n] of Object.entries({ batchSize, capacity }))
      if (!Number.isInteger(n) || n < 1) throw new ShapeError(`KeyValueCache: ${name} must be a whole number ≥ 1`);
    this.capacity = capacity;
    this.batchSize = batchSize;
    const { padding } = options;
    if (padding && (padding.length !== batchSize || padding.some((n) => !Number.isInteger(n) || n < 0)))
      throw new ShapeError(
        `KeyValueCache: padding must be ${batchSize} whole numbers ≥ 0, got [${padding.join(", ")}]`,
      );
    this.begins = padding?.some((n) => n > 0) ? tensor(Int32Array.from(padding), { device }) : null;
    const memory = (name: string): Tensor => {
      const shape = [batchSize, numKeyValueHeads, capacity, headDim];
      // written, not computed: zeros would be a program of their own for every shape
      const empty = allocateRaw(dtype, sizeOf(shape));
      const x = asState(fromRaw(empty, dtype, shape, { device, owned: true }));
      x.name = name;
      return x;
    };
    this.layers = Array.from({ length: numLayers }, (_, i) => ({
      keys: memory(`cache.${i}.keys`),
      values: memory(`cache.${i}.values`),
    }));
  }

  /** How many tokens it holds. */
  get length(): number {
    return this.#length;
  }

  /**
   * Keeps the first `length` tokens only. What lies behind them is never read before it is written again, so nothing is
   * cleared.
   */
  truncate(length: number): void {
    if (!Number.isInteger(length) || length < 0 || length > this.#length)
      throw new ShapeError(`KeyValueCache: can't keep ${length} of ${this.#length} tokens`);
    this.#length = length;
  }

  /** Counts `count` tokens that have been appended. */
  advance(count: number): void {
    this.#length += count;
  }

  /** The place of `time` tokens behind those in it, which are part of a text of `textLength`. */
  place(time: number, textLength = this.#length + time): CachePlace {
    const [start, end] = [this.#length, this.#length + time].map((n) => ops.scalar(n, "int32"));
    return { cache: this, start, end, textLength };
  }

  /** Throws where `time` positions more do not fit. */
  checkRoom(time: number): void {
    if (this.#length + time > this.capacity)
      throw new ShapeError(
        `KeyValueCache: ${time} tokens more than the ${this.#length} in it do not fit into its ${this.capacity}`,
      );
  }

  /**
   * Writes keys and values [batch, key-value heads, time, head width] behind the `start` tokens that are there (an int32
   * scalar of the graph), and gives the layer's whole memory, in which only the first `start` + time positions mean something.
   */
  append(layer: number, keys: Tensor, values: Tensor, start: Node): { keys: Tensor; values: Tensor } {
    const zero = ops.constant(0, "int32");
    const put = (memory: Tensor, fresh: Tensor): Tensor => {
      write(
        "KeyValueCache",
        memory,
        ops.dynamicUpdate(memory.node, ops.cast(fresh.node, memory.dtype), [zero, zero, start, zero]),
      );
      return new Tensor(memory.node);
    };
    const { keys: oldKeys, values: oldValues } = this.layers[layer];
    return { keys: put(oldKeys, keys), values: put(oldValues, values) };
  }
}
