/**
 * A tensor as text: the layout of PyTorch's print (4 decimals, aligned columns, lines of 80 characters, three items at each edge
 * of what has more than 1000 elements), and the short form that the debugger shows. Numbers come from outside; nothing is
 * computed here.
 */
import { type DType, decode, isFloat, type TypedArray } from "../core/dtype.ts";
import { type Shape, showShape, sizeOf } from "../core/shape.ts";
import { resolve } from "../execution/index.ts";
import type { Node } from "../graph/node.ts";
import type { Tensor } from "./tensor.ts";

const precision = 4;
const threshold = 1000;
const edgeItems = 3;
const lineWidth = 80;

/** Small values that were read, by node, for toString; a node's value never changes. */
const known = new WeakMap<Node, TypedArray>();

export function remember(node: Node, raw: TypedArray): void {
  if (raw.length <= threshold && !known.has(node)) known.set(node, raw.slice());
}

/** `digits` decimals, ties to even as C prints them (JavaScript rounds ties up). */
function fixed(v: number, digits: number): string {
  const text = v.toFixed(digits);
  const exact = Math.abs(v) < 1e21 ? v.toFixed(100) : text;
  const point = exact.indexOf(".");
  if (point < 0 || !/^50*$/.test(exact.slice(point + 1 + digits))) return text;
  const down = exact.slice(0, digits === 0 ? point : point + 1 + digits);
  return Number(down.at(-1)) % 2 === 0 ? down : text;
}

/** Scientific notation with `digits` decimals and an exponent of two digits or more. */
function scientific(v: number, digits: number): string {
  let [mantissa, exponent] = v.toExponential(digits).split("e");
  const exact = v.toExponential(100).split("e")[0];
  const point = exact.indexOf(".");
  if (/^50*$/.test(exact.slice(point + 1 + digits)) && Number(exact[point + digits]) % 2 === 0) {
    mantissa = exact.slice(0, point + 1 + digits);
    exponent = v.toExponential(100).split("e")[1];
  }
  return `${mantissa}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
}

const special = (v: number): string => (Number.isNaN(v) ? "nan" : v > 0 ? "inf" : "-inf");

/** How one element is written, and how wide a column is, for the elements that will be shown. */
function formatter(values: readonly number[], dtype: DType): { width: number; format: (v: number) => string } {
  if (!isFloat(dtype)) {
    const text = dtype === "bool" ? (v: number) => (v ? "True" : "False") : String;
    const width = values.reduce((w, v) => Math.max(w, text(v).length), 1);
    return { width, format: (v) => text(v).padStart(width) };
  }
  const shown = values.filter((v) => Number.isFinite(v) && v !== 0);
  const sizes = shown.map(Math.abs);
  const high = sizes.reduce((a, b) => Math.max(a, b), 0);
  const low = sizes.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY);
  const whole = shown.every(Number.isInteger);
  const spread = shown.length > 0 && (high / low > 1000 || high > 1e8 || (!whole && low < 1e-4));
  const text = (v: number): string =>
    !Number.isFinite(v)
      ? special(v)
      : spread
        ? scientific(v, precision)
        : whole
          ? `${Object.is(v, -0) ? "-0" : v.toFixed(0)}.`
          : `${v < 0 || Object.is(v, -0) ? "-" : ""}${fixed(Math.abs(v), precision)}`;
  const width = shown.reduce((w, v) => Math.max(w, text(v).length), 1);
  return { width, format: (v) => text(v).padStart(width) };
}

/** The positions of an axis that are shown. */
const shownOf = (n: number, summarize: boolean): number[] =>
  summarize && n > 2 * edgeItems
    ? [...Array(edgeItems).keys(), ...Array.from({ length: edgeItems }, (_, i) => n - edgeItems + i)]
    : [...Array(n).keys()];

function layout(data: TypedArray, shape: Shape, dtype: DType, indent: number): string {
  const summarize = data.length > threshold;
  const visible: number[] = [];
  const collect = (axis: number, at: number): void => {
    if (axis === shape.length) {
      visible.push(data[at]);
      return;
    }
    const step = sizeOf(shape.slice(axis + 1));
    for (const i of shownOf(shape[axis], summarize)) collect(axis + 1, at + i * step);
  };
  collect(0, 0);
  const { width, format } = formatter(visible, dtype);
  const rows = (axis: number, at: number, margin: number): string => {
    if (axis === shape.length) return format(data[at]);
    const n = shape[axis];
    const step = sizeOf(shape.slice(axis + 1));
    const cut = summarize && n > 2 * edgeItems;
    const items = shownOf(n, summarize).map((i) => rows(axis + 1, at + i * step, margin + 1));
    if (axis === shape.length - 1) {
      if (cut) items.splice(edgeItems, 0, " ...");
      const perLine = Math.max(1, Math.floor((lineWidth - margin) / (width + 2)));
      const lines: string[] = [];
      for (let i = 0; i < items.length; i += perLine) lines.push(items.slice(i, i + perLine).join(", "));
      return `[${lines.join(`,\n${" ".repeat(margin + 1)}`)}]`;
    }
    if (cut) items.splice(edgeItems, 0, "...");
    return `[${items.join(`,${"\n".repeat(shape.length - axis - 1)}${" ".repeat(margin + 1)}`)}]`;
  };
  return rows(0, 0, indent);
}

/**
 * What PyTorch prints for the tensor: `tensor([[1., 2.]])`, with dtype where it is not float32 or bool (int64, which PyTorch
 * leaves out too, does not exist here), and requiresGrad.
 */
export function printTensor(x: Tensor, data: TypedArray): string {
  const prefix = "tensor(";
  const { shape, dtype } = x;
  const suffixes: string[] = [];
  if (data.length === 0 && shape.length !== 1)
    suffixes.push(`size=(${shape.join(", ")}${shape.length === 1 ? "," : ""})`);
  if (dtype !== "float32" && (dtype !== "bool" || data.length === 0)) suffixes.push(`dtype=${dtype}`);
  if (x.requiresGrad) suffixes.push("requiresGrad=true");
  let text = prefix + (data.length === 0 ? "[]" : layout(data, shape, dtype, prefix.length));
  let last = text.length - text.lastIndexOf("\n") + 1;
  for (const suffix of suffixes) {
    if (last + suffix.length + 2 > lineWidth) {
      text += `,\n${" ".repeat(prefix.length)}${suffix}`;
      last = prefix.length + suffix.length;
    } else {
      text += `, ${suffix}`;
      last += suffix.length + 2;
    }
  }
  return `${text})`;
}

/** `Tensor float32[2, 3] on cpu`, and the values where they have been read. */
export function inspectTensor(x: Tensor): string {
  const node = resolve(x.node);
  const raw =
    known.get(node) ??
    (node.storage?.upload && !(node.storage.upload instanceof Promise) && node.storage.length <= threshold
      ? node.storage.upload
      : undefined);
  const head = `Tensor ${x.dtype}${showShape(x.shape)} on ${x.device}${x.requiresGrad ? ", requiresGrad" : ""}${x.name ? ` "${x.name}"` : ""}`;
  return raw ? `${head}: ${printTensor(x, decode(x.dtype, raw))}` : head;
}
