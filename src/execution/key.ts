/**
 * The canonical key of a capture: whole numbers that are equal for two captures exactly if one program serves both.
 * It holds operations, attributes, regions, the wiring, leaves (dtype, shape, which of them share a storage), scalar
 * slots (not their values), roots and assigns. Shapes of computed nodes follow from these. Written into one scratch
 * array, without strings: a step pays for it every time.
 */
import type { Capture } from "../backends/backend.ts";
import { dtypes } from "../core/dtype.ts";
import { type Attrs, type AttrValue, type Node, noAttrs, type Storage } from "../graph/node.ts";

let out = new Int32Array(4096);
let n = 0;

const double = new Float64Array(1);
const words = new Int32Array(double.buffer);

/** Numbers for attribute names and textual attributes; these come from the library's code, so they are few. */
const texts = new Map<string, number>();
function textId(text: string): number {
  let id = texts.get(text);
  if (id === undefined) texts.set(text, (id = texts.size));
  return id;
}

function reserve(count: number): void {
  if (n + count <= out.length) return;
  const grown = new Int32Array(Math.max(out.length * 2, n + count));
  grown.set(out);
  out = grown;
}

// Every value starts with a tag, so that no two different lists of values write the same numbers.
const wholeTag = 1;
const doubleTag = 2;
const textTag = 3;
const trueTag = 4;
const falseTag = 5;
const nullTag = 6;
const listTag = 7;
const wholesTag = 8;
const nameTag = 9;

const isWhole = (v: unknown): v is number => typeof v === "number" && (v | 0) === v && (v !== 0 || 1 / v > 0);

function writeValue(value: AttrValue): void {
  reserve(3);
  if (typeof value === "number") {
    if (isWhole(value)) {
      out[n++] = wholeTag;
      out[n++] = value;
    } else {
      double[0] = value;
      out[n++] = doubleTag;
      out[n++] = words[0];
      out[n++] = words[1];
    }
  } else if (typeof value === "string") {
    out[n++] = textTag;
    out[n++] = textId(value);
  } else if (typeof value === "boolean") out[n++] = value ? trueTag : falseTag;
  else if (value === null) out[n++] = nullTag;
  else writeList(value);
}

function writeList(list: readonly AttrValue[]): void {
  const length = list.length;
  reserve(length + 2);
  const start = n;
  out[n++] = wholesTag;
  out[n++] = length;
  for (let i = 0; i < length; i++) {
    const value = list[i];
    if (!isWhole(value)) {
      n = start;
      out[n++] = listTag;
      out[n++] = length;
      for (let j = 0; j < length; j++) writeValue(list[j]);
      return;
    }
    out[n++] = value;
  }
}

/** The attribute names that each operation was first seen with, by its code: nearly always the same, so they need not be written. */
const usualNames: (readonly string[] | undefined)[] = [];

function writeAttrs(code: number, attrs: Attrs): void {
  if (attrs === noAttrs) return;
  const usual = usualNames[code] ?? (usualNames[code] = Object.keys(attrs));
  let i = 0;
  for (const name in attrs) {
    if (name !== usual[i]) {
      reserve(2);
      out[n++] = nameTag;
      out[n++] = textId(name);
    }
    i++;
    writeValue(attrs[name]);
  }
}

function writeLeaf(node: Node, storage: Storage): void {
  const shape = node.shape;
  reserve(shape.length + 5);
  out[n++] = -1;
  out[n++] = storage.slot;
  out[n++] = dtypes[node.dtype].code;
  out[n++] = storage.length;
  out[n++] = shape.length;
  for (let i = 0; i < shape.length; i++) out[n++] = shape[i];
}

/** The key of `capture`, in scratch memory that the next call overwrites. The capture's nodes must carry its slots. */
export function writeKey(capture: Capture): Int32Array {
  n = 0;
  const { order, roots, assigns } = capture;
  let regions: number[] | null = null;
  for (let k = 0; k < order.length; k++) {
    const node = order[k];
    if (node.storage !== null) {
      writeLeaf(node, node.storage);
      continue;
    }
    const inputs = node.inputs;
    reserve(inputs.length + 4);
    out[n++] = node.operation.code;
    let region = 0;
    if (node.region !== 0) {
      regions ??= [0];
      region = regions.indexOf(node.region);
      if (region < 0) region = regions.push(node.region) - 1;
    }
    out[n++] = region;
    if (node.state !== null) {
      out[n++] = 1; // an assign node is its value
      out[n++] = inputs[1].slot;
      continue;
    }
    out[n++] = inputs.length;
    for (let i = 0; i < inputs.length; i++) out[n++] = inputs[i].slot;
    const at = n++;
    writeAttrs(node.operation.code, node.attrs);
    out[at] = n - at;
  }
  reserve(roots.length + 2 + 2 * assigns.length);
  out[n++] = -2;
  for (let i = 0; i < roots.length; i++) out[n++] = roots[i].slot;
  out[n++] = -3;
  for (let i = 0; i < assigns.length; i++) {
    out[n++] = assigns[i].storage;
    out[n++] = assigns[i].value.slot;
  }
  return out.subarray(0, n);
}

/** 32 bits of `key` (multiplications by the constants of MurmurHash3's finaliser). */
export function hashKey(key: Int32Array): number {
  let h = key.length;
  for (let i = 0; i < key.length; i++) {
    h = Math.imul(h ^ key[i], 0x85ebca6b);
    h ^= h >>> 15;
  }
  h = Math.imul(h, 0xc2b2ae35);
  return h ^ (h >>> 16);
}

export function sameKey(a: Int32Array, b: Int32Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** A hash of the operations and their wiring alone: equal for steps that differ only in shapes and numbers. */
export function hashStructure(capture: Capture): number {
  let h = capture.order.length;
  for (const node of capture.order) {
    h = Math.imul(h ^ (node.storage ? -1 : node.operation.code), 0x85ebca6b);
    h ^= h >>> 15;
    if (node.storage) continue;
    const inputs = node.state ? [node.inputs[1]] : node.inputs;
    for (const input of inputs) h = Math.imul(h ^ input.slot, 0xc2b2ae35);
  }
  return h;
}
