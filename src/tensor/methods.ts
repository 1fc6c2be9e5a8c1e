/**
 * The table of methods: each function below takes a tensor first, and is a method of it under the same name. A new operation
 * becomes a method with one entry here, typed by its own signature.
 */
import { to } from "./create.ts";
import * as elementwise from "./elementwise.ts";
import * as indexed from "./indexed.ts";
import { at, setAt, withAt } from "./indexing.ts";
import * as inplace from "./inplace.ts";
import * as linear from "./linear.ts";
import * as movement from "./movement.ts";
import type { DimOptions } from "./operand.ts";
import { bernoulli, bernoulli_, multinomial, normal_, uniform_ } from "./random.ts";
import * as reduce from "./reduce.ts";
import { Tensor } from "./tensor.ts";

/** Not methods: what takes no tensor first, or has overloads, which are written out below. */
const { largestOf: _l, where: _w, ...elements } = elementwise;
const { max: _max, min: _min, median: _median, variance, ...reductions } = reduce;
const { einsum: _e, ...products } = linear;
const { cat: _c, concat: _cc, stack: _s, diagonalNode: _d, ...movements } = movement;

const table = {
  ...elements,
  ...reductions,
  var: variance,
  ...products,
  ...movements,
  ...indexed,
  ...inplace,
  at,
  setAt,
  withAt,
  to,
  bernoulli,
  multinomial,
  uniform_,
  normal_,
  bernoulli_,
};

type Method<F> = F extends (x: Tensor, ...args: infer A extends readonly unknown[]) => infer R
  ? (...args: A) => R
  : never;

type TableMethods = { readonly [Name in keyof typeof table]: Method<(typeof table)[Name]> };

type Along = number | (DimOptions & { readonly dim: number });

/** Every operation as a method. */
export interface TensorMethods extends TableMethods {
  /** The largest element of all, or along `dim` with its (first) index. */
  max(): Tensor;
  max(options: Along): reduce.ValuesAndIndices;
  /** The smallest element of all, or along `dim` with its (first) index. */
  min(): Tensor;
  min(options: Along): reduce.ValuesAndIndices;
  /** The median (the lower one of two) of all elements, or along `dim` with its index. */
  median(): Tensor;
  median(options: Along): reduce.ValuesAndIndices;
  /** Elements of this tensor where `condition` holds, else of `other`. */
  where(condition: Tensor, other: Tensor | number | boolean): Tensor;
}

type Any = (...args: unknown[]) => unknown;

/** Functions of any number of arguments; the others get their arguments one by one, which is faster than spreading. */
const variadic = new Set(["reshape", "view", "permute", "expand", "tile", "repeat", "at"]);

const method = (f: Any): Any =>
  function (this: unknown, a: unknown, b: unknown, c: unknown, d: unknown) {
    return f(this, a, b, c, d);
  };
const variadicMethod = (f: Any): Any =>
  function (this: unknown, ...args: unknown[]) {
    return f(this, ...args);
  };

const overloaded = {
  max: reduce.max,
  min: reduce.min,
  median: reduce.median,
  where: (x: Tensor, condition: Tensor, other: Tensor | number | boolean) => elementwise.where(condition, x, other),
};

for (const [name, f] of Object.entries({ ...table, ...overloaded }))
  Object.defineProperty(Tensor.prototype, name, {
    value: variadic.has(name) ? variadicMethod(f as Any) : method(f as Any),
    writable: true,
    configurable: true,
  });
