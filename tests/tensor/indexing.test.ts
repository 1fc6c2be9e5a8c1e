/** at() and setAt() against plain loops over coordinates, on random index lists; and what they refuse. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DTypeError, IndexError, ShapeError } from "../../src/core/errors.ts";
import { contiguousStrides, sizeOf } from "../../src/core/shape.ts";
import { setDevice } from "../../src/execution/index.ts";
import { arange, type Index, Slice, slice, type Tensor, tensor, zeros } from "../../src/tensor/index.ts";
import { stream } from "../execution/programs.ts";

setDevice("reference");

type Plain =
  | number
  | null
  | "..."
  | readonly [number | null, number | null, number]
  | { shape: number[]; values: number[] };

/** Python's range(*slice.indices(n)). */
function positions([start, stop, step]: readonly [number | null, number | null, number], n: number): number[] {
  const clip = (v: number | null, otherwise: number): number => {
    if (v === null) return otherwise;
    const w = v < 0 ? v + n : v;
    return step > 0 ? Math.min(Math.max(w, 0), n) : Math.min(Math.max(w, -1), n - 1);
  };
  const [from, to] = step > 0 ? [clip(start, 0), clip(stop, n)] : [clip(start, n - 1), clip(stop, -1)];
  const out: number[] = [];
  for (let i = from; step > 0 ? i < to : i > to; i += step) out.push(i);
  return out;
}

/** The shape of x[entries], and the flat position in x of each of its elements: NumPy's rules, by loops. */
function meaning(shape: readonly number[], entries: readonly Plain[]): { shape: number[]; source: number[] } {
  const used = entries.filter((e) => e !== null && e !== "...").length;
  const all: readonly [null, null, number] = [null, null, 1];
  const open = entries.includes("...") ? entries : [...entries, "..." as const];
  const full = open.flatMap((e): Plain[] =>
    e === "..." ? Array.from({ length: shape.length - used }, () => all) : [e],
  );
  const strides = contiguousStrides(shape);
  // axes of the result before index tensors are placed: lists of offsets, or a mark where an index tensor stands
  const axes: (number[] | "index")[] = [];
  const indices: { shape: number[]; values: number[]; axis: number }[] = [];
  let base = 0;
  let axis = 0;
  for (const e of full) {
    if (e === null) axes.push([0]);
    else if (typeof e === "number") {
      base += (e < 0 ? e + shape[axis] : e) * strides[axis];
      axis++;
    } else if (Array.isArray(e)) {
      const [a] = [axis];
      axes.push(positions(e as [number, number, number], shape[a]).map((i) => i * strides[a]));
      axis++;
    } else {
      axes.push("index");
      indices.push({ ...(e as { shape: number[]; values: number[] }), axis: axis++ });
    }
  }
  const rank = Math.max(0, ...indices.map((x) => x.shape.length));
  const common = Array.from({ length: rank }, (_, i) =>
    Math.max(...indices.map((x) => x.shape[x.shape.length - rank + i] ?? 1)),
  );
  const offsets: number[] = [];
  for (let flat = 0; flat < sizeOf(common); flat++) {
    let offset = 0;
    for (const x of indices) {
      const own = contiguousStrides(x.shape);
      let at = 0;
      contiguousStrides(common).forEach((s, i) => {
        const k = i - (rank - x.shape.length);
        if (k >= 0 && x.shape[k] !== 1) at += (Math.floor(flat / s) % common[i]) * own[k];
      });
      const v = x.values[at];
      offset += (v < 0 ? v + shape[x.axis] : v) * strides[x.axis];
    }
    offsets.push(offset);
  }
  const marks = axes.flatMap((a, i) => (a === "index" ? [i] : []));
  const together = marks.every((m, i) => i === 0 || m === marks[i - 1] + 1);
  const place = marks.length === 0 ? -1 : together ? marks[0] : 0;
  const rest = axes.filter((a): a is number[] => a !== "index");
  const lists: { sizes: number[]; offsets: number[] }[] = rest.map((a) => ({ sizes: [a.length], offsets: a }));
  if (place >= 0) lists.splice(place, 0, { sizes: common, offsets });
  let source = [base];
  for (const list of lists) source = source.flatMap((s) => list.offsets.map((o) => s + o));
  return { shape: lists.flatMap((l) => l.sizes), source };
}

const seed = Number(process.env["NABLA_SEED"] ?? 3);

/** A random shape and index list. */
function randomCase(random: () => number): { shape: number[]; entries: Plain[] } {
  const int = (n: number): number => Math.floor(random() * n);
  const shape = Array.from({ length: 1 + int(4) }, () => 1 + int(4));
  const entries: Plain[] = [];
  const indexShape = [[], [2], [3], [2, 3], [1, 3], [2, 1]];
  const first = indexShape[int(6)];
  let left = shape.length;
  let at = 0;
  const maybe = (): number | null => (random() < 0.4 ? null : int(11) - 5);
  while (left > 0 && random() < 0.9) {
    const dice = random();
    if (dice < 0.15) entries.push(null);
    else if (dice < 0.22 && !entries.includes("...") && left > 1) {
      entries.push("...");
      at += left - 1;
      left = 1;
    } else {
      const n = shape[at++];
      left--;
      if (dice < 0.4) entries.push(int(2 * n) - n);
      else if (dice < 0.72) entries.push([maybe(), maybe(), [1, 1, 2, 3, -1, -2][int(6)]]);
      else {
        const own =
          entries.some((e) => typeof e === "object" && e !== null && !Array.isArray(e)) && random() < 0.4 ? [] : first;
        entries.push({ shape: own, values: Array.from({ length: sizeOf(own) }, () => int(2 * n) - n) });
      }
    }
  }
  // "..." stands for what is left over
  return { shape, entries };
}

/** Entries that the "..." may have moved to other axes stay inside of them. */
const clamped = (shape: readonly number[], entries: readonly Plain[]): Plain[] => {
  const used = entries.filter((e) => e !== null && e !== "...").length;
  let axis = 0;
  return entries.map((e) => {
    if (e === null) return e;
    if (e === "...") {
      axis += shape.length - used;
      return e;
    }
    const n = shape[axis++];
    const inside = (v: number): number => ((v % n) + n) % n;
    if (typeof e === "number") return inside(e);
    return Array.isArray(e)
      ? e
      : {
          shape: (e as { shape: number[] }).shape,
          values: (e as { values: number[] }).values.map((v, i) => (i % 2 ? inside(v) : inside(v) - n)),
        };
  });
};

const lazy = (entries: readonly Plain[]): Index[] =>
  entries.map((e): Index => {
    if (e === null || e === "..." || typeof e === "number") return e;
    if (Array.isArray(e)) return slice(e[0], e[1], e[2]);
    const { shape, values } = e as { shape: number[]; values: number[] };
    return tensor(Int32Array.from(values), { shape });
  });

describe("indexing", () => {
  it("at() equals loops over coordinates on 400 random index lists", async () => {
    const random = stream(seed);
    for (let k = 0; k < 400; k++) {
      const { shape, entries: raw } = randomCase(random);
      const entries = clamped(shape, raw);
      const x = arange(sizeOf(shape)).reshape(shape);
      const expected = meaning(shape, entries);
      const got = x.at(...lazy(entries));
      const what = `seed ${seed}, case ${k}: ${JSON.stringify(shape)} at ${JSON.stringify(entries)}`;
      assert.deepEqual([...got.shape], expected.shape, what);
      assert.deepEqual(Array.from(await got.data()), expected.source, what);
    }
  });

  it("setAt() equals loops over coordinates on 300 random index lists", async () => {
    const random = stream(seed + 1);
    for (let k = 0; k < 300; k++) {
      const { shape, entries: raw } = randomCase(random);
      const entries = clamped(shape, raw);
      const { shape: region, source } = meaning(shape, entries);
      // part of the value's axes broadcast
      const cut = Math.floor(random() * (region.length + 1));
      const valueShape = region.slice(cut).map((n) => (random() < 0.2 ? 1 : n));
      const values = Array.from({ length: sizeOf(valueShape) }, (_, i) => 100 + i);
      const x = arange(sizeOf(shape)).reshape(shape);
      const view = x.reshape([sizeOf(shape)]).mul(1);
      x.setAt(lazy(entries), tensor(Int32Array.from(values), { shape: valueShape }));
      const expected = Array.from({ length: sizeOf(shape) }, (_, i) => i);
      const strides = contiguousStrides(region);
      const own = contiguousStrides(valueShape);
      source.forEach((position, flat) => {
        let at = 0;
        valueShape.forEach((n, i) => {
          const axis = i + region.length - valueShape.length;
          if (n !== 1) at += (Math.floor(flat / strides[axis]) % region[axis]) * own[i];
        });
        expected[position] = values[at];
      });
      const what = `seed ${seed}, case ${k}: ${JSON.stringify(shape)} at ${JSON.stringify(entries)} = ${JSON.stringify(valueShape)}`;
      assert.deepEqual(Array.from(await x.data()), expected, what);
      assert.deepEqual(
        Array.from(await view.data()),
        Array.from({ length: sizeOf(shape) }, (_, i) => i),
        what,
      );
    }
  });

  it("a bool mask writes where it holds, over the first axes", async () => {
    const x = tensor([
      [1, 2],
      [3, 4],
      [5, 6],
    ]);
    x.setAt([x.gt(3)], 0);
    assert.deepEqual(await x.tolist(), [
      [1, 2],
      [3, 0],
      [0, 0],
    ]);
    x.setAt([tensor([true, false, true])], tensor([8, 9]));
    assert.deepEqual(await x.tolist(), [
      [8, 9],
      [3, 0],
      [8, 9],
    ]);
  });

  it("gradients go to the elements that were read or written", async () => {
    const x = tensor(
      [
        [1, 2, 3],
        [4, 5, 6],
      ],
      { requiresGrad: true },
    );
    const y = x.at(tensor([1, 1], { dtype: "int32" }), slice(null, null, -2)).mul(
      tensor([
        [1, 10],
        [2, 20],
      ]),
    );
    y.sum().backward();
    assert.deepEqual(await x.grad?.tolist(), [
      [0, 0, 0],
      [30, 0, 3],
    ]);
    const v = tensor([7, 8], { requiresGrad: true });
    const gradient = (t: Tensor): Tensor => t.grad as Tensor;
    x.grad = null;
    const z = x.mul(2).setAt([0, slice(1)], v);
    z.square().sum().backward();
    assert.deepEqual(await gradient(v).tolist(), [14, 16]);
    assert.deepEqual(await gradient(x).tolist(), [
      [8, 0, 0],
      [32, 40, 48],
    ]);
  });

  it("refuses what does not fit, saying what and where", async () => {
    const x: Tensor = zeros([2, 3]);
    assert.throws(() => x.at(2), /at: index 2 is outside of axis 0 \(size 2\) of \[2, 3\]/);
    assert.throws(() => x.at(0, 0, 0), /3 indices for the 2 axes/);
    assert.throws(() => x.at("...", "..."), ShapeError);
    assert.throws(() => slice(0, 2, 0), /the step can't be 0/);
    assert.throws(
      () => x.at(tensor([true, false])),
      (e: Error) => e instanceof DTypeError && /maskedSelect/.test(e.message),
    );
    assert.throws(() => x.at(tensor([0.5])), DTypeError);
    assert.throws(() => x.setAt([0], zeros([4])), ShapeError);
    // an index tensor is checked when it runs, each axis for itself
    await assert.rejects(x.at([0], [3]).data(), IndexError);
    await assert.rejects(x.at([1], [-4]).data(), IndexError);
    assert.ok(slice(1) instanceof Slice);
  });

  it("data-dependent sizes are awaited", async () => {
    const x = tensor([
      [0, 3],
      [4, 0],
    ]);
    assert.deepEqual(await (await x.maskedSelect(x.gt(0))).tolist(), [3, 4]);
    assert.deepEqual(await (await x.nonzero()).tolist(), [
      [0, 1],
      [1, 0],
    ]);
    assert.deepEqual(await (await tensor([3, 1, 3, 2]).unique()).tolist(), [1, 2, 3]);
    assert.deepEqual(await (await tensor([0, 2, 2], { dtype: "int32" }).bincount(4)).tolist(), [1, 0, 2, 0]);
  });
});
