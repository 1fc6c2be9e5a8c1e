/**
 * Index expressions against plain integers: random expressions mean at every position what their construction says, their
 * bounds hold, their steps are steps; and movements that undo each other leave exactly the position that they started from.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import {
  add,
  affine,
  axis,
  BLOCK,
  bounded,
  constantIndex,
  delinearize,
  dependsOn,
  div,
  divisions,
  type Index,
  linearize,
  mod,
  offset,
  scale,
  stepAlong,
  substitute,
} from "../../src/compiler/index-expr.ts";

const numRuns = process.env["NABLA_LONG"] === "1" ? 20_000 : 2_000;

type Place = ReadonlyMap<string, number>;

/** What an expression's atoms say, with floor division. */
function meaningOf(x: Index, at: Place): number {
  let sum = x.constant;
  for (const { atom, coefficient } of x.terms) {
    let a: number;
    if (atom.kind === "axis") a = at.get(atom.name) as number;
    else if (atom.kind === "value") throw new Error("no run-time values here");
    else {
      const of = meaningOf(atom.of, at);
      // C and WGSL divide toward 0: what a kernel divides must not be negative
      if (atom.kind !== "bounded" && atom.of.min < 0) throw new Error(`divides what may be negative: ${atom.key}`);
      if (atom.kind === "div") a = Math.floor(of / atom.by);
      else if (atom.kind === "mod") a = of - Math.floor(of / atom.by) * atom.by;
      else a = of;
    }
    sum += coefficient * a;
  }
  return sum;
}

function* places(axes: readonly (readonly [string, number])[]): Generator<Map<string, number>> {
  const total = axes.reduce((n, [, extent]) => n * extent, 1);
  for (let i = 0; i < total; i++) {
    const at = new Map<string, number>();
    let rest = i;
    for (const [name, extent] of axes) {
      at.set(name, rest % extent);
      rest = Math.floor(rest / extent);
    }
    yield at;
  }
}

/** An expression and what it was built to mean. */
interface Built {
  readonly index: Index;
  readonly mean: (at: Place) => number;
  readonly text: string;
}

const names = ["r", "c", "k"] as const;

/** Random expressions over three axes of the given sizes. */
function expressions(extents: readonly number[]): fc.Arbitrary<Built> {
  const axes = names.map(
    (name, i): Built => ({ index: axis(name, extents[i]), mean: (at) => at.get(name) as number, text: name }),
  );
  const small = fc.integer({ min: -7, max: 7 });
  const divisor = fc.constantFrom(1, 2, 3, 4, 5, 6, 8, 12, 15, 24);
  const { tree } = fc.letrec<{ tree: Built }>((tie) => ({
    tree: fc.oneof(
      { depthSize: "medium", withCrossShrink: true },
      fc.constantFrom(...axes),
      small.map((n): Built => ({ index: constantIndex(n), mean: () => n, text: String(n) })),
      fc.tuple(tie("tree"), tie("tree")).map(
        ([a, b]): Built => ({
          index: add(a.index, b.index),
          mean: (at) => a.mean(at) + b.mean(at),
          text: `(${a.text} + ${b.text})`,
        }),
      ),
      fc
        .tuple(tie("tree"), fc.constantFrom(-12, -3, -1, 2, 3, 4, 5, 6, 12, 24))
        .map(([a, k]): Built => ({ index: scale(a.index, k), mean: (at) => a.mean(at) * k, text: `${a.text}·${k}` })),
      fc
        .tuple(tie("tree"), small)
        .map(
          ([a, k]): Built => ({ index: offset(a.index, k), mean: (at) => a.mean(at) + k, text: `(${a.text} + ${k})` }),
        ),
      fc.tuple(tie("tree"), divisor).map(
        ([a, n]): Built => ({
          index: div(a.index, n),
          mean: (at) => Math.floor(a.mean(at) / n),
          text: `⌊${a.text} / ${n}⌋`,
        }),
      ),
      fc.tuple(tie("tree"), divisor).map(
        ([a, n]): Built => ({
          index: mod(a.index, n),
          mean: (at) => a.mean(at) - Math.floor(a.mean(at) / n) * n,
          text: `(${a.text} mod ${n})`,
        }),
      ),
    ),
  }));
  return tree;
}

const extents = fc.tuple(...names.map(() => fc.constantFrom(1, 2, 3, 4, 5, 6, 7, 8, 12)));
const withExtents = extents.chain((sizes) => expressions(sizes).map((e) => ({ sizes, e })));
const axesOf = (sizes: readonly number[]) => names.map((name, i) => [name, sizes[i]] as const);

describe("index expressions", () => {
  test("mean what they were built from, at every position, and stay within their bounds", () => {
    fc.assert(
      fc.property(withExtents, ({ sizes, e }) => {
        for (const at of places(axesOf(sizes))) {
          const value = meaningOf(e.index, at);
          assert.ok(
            value === e.mean(at),
            `${e.text} is ${value}, not ${e.mean(at)}, over ${sizes} at ${[...at]}: ${e.index.key}`,
          );
          assert.ok(value >= e.index.min && value <= e.index.max, `${e.text}: ${value} outside its bounds`);
        }
      }),
      { numRuns },
    );
  });

  test("say how far they move along an axis, or that it is not always the same", () => {
    fc.assert(
      fc.property(withExtents, ({ sizes, e }) => {
        names.forEach((name, i) => {
          const step = stepAlong(e.index, name);
          assert.ok(step !== null || dependsOn(e.index, name), e.text);
          if (step === null) return;
          for (const at of places(axesOf(sizes))) {
            const now = at.get(name) as number;
            if (now + 1 >= sizes[i]) continue;
            const next = new Map(at).set(name, now + 1);
            assert.ok(e.mean(next) - e.mean(at) === step, `${e.text} along ${name}: ${e.index.key}`);
          }
        });
      }),
      { numRuns },
    );
  });

  test("divided by a multiple of the block say how they move inside a block of lanes", () => {
    // a kernel's lanes are part of a block of BLOCK positions that starts at a multiple of BLOCK
    const choices = fc.record({
      by: fc.constantFrom(16, 32, 48, 64),
      wraps: fc.constantFrom(2, 16, 32),
      rows: fc.constantFrom(1, 16, 32, 40, 96),
      constant: fc.constantFrom(0, 1, 16, -16, 32),
      isRest: fc.boolean(),
    });
    fc.assert(
      fc.property(choices, ({ by, wraps, rows, constant, isRest }) => {
        const x = offset(add(scale(axis("r", 3), rows), axis("c", 96)), constant);
        const index = isRest ? mod(mod(x, by * wraps), by) : div(mod(x, by * wraps), by);
        const step = stepAlong(index, "c");
        if (step === null) return;
        for (const at of places([
          ["r", 3],
          ["c", 96],
        ])) {
          const here = at.get("c") as number;
          if (here % BLOCK === BLOCK - 1) continue;
          const next = new Map(at).set("c", here + 1);
          assert.ok(meaningOf(index, next) - meaningOf(index, at) === step, index.key);
        }
      }),
      { numRuns: numRuns / 4 },
    );
    assert.equal(stepAlong(div(axis("c", 96), 32), "c"), 0);
    assert.equal(stepAlong(mod(axis("c", 96), 32), "c"), 1);
    assert.equal(stepAlong(div(axis("c", 96), 24), "c"), null);
  });

  test("that do not depend on an axis are the same all along it", () => {
    fc.assert(
      fc.property(withExtents, ({ sizes, e }) => {
        for (const name of names) {
          if (dependsOn(e.index, name)) continue;
          for (const at of places(axesOf(sizes))) assert.ok(e.mean(new Map(at).set(name, 0)) === e.mean(at), e.text);
        }
      }),
      { numRuns: numRuns / 4 },
    );
  });

  test("take other expressions in place of their axes", () => {
    const pairs = extents.chain((sizes) =>
      fc.tuple(expressions(sizes), expressions(sizes)).map(([e, put]) => ({ sizes, e, put })),
    );
    fc.assert(
      fc.property(pairs, ({ sizes, e, put }) => {
        // held to the axis' range, as the movements do
        const held = mod(put.index, sizes[0]);
        const out = substitute(e.index, new Map([["r", held]]));
        for (const at of places(axesOf(sizes)))
          assert.ok(
            meaningOf(out, at) === e.mean(new Map(at).set("r", meaningOf(held, at))),
            `${e.text} with ${put.text}`,
          );
      }),
      { numRuns: numRuns / 4 },
    );
  });

  test("known to lie in a range keep their meaning where they do", () => {
    fc.assert(
      fc.property(
        withExtents,
        fc.constantFrom(1, 2, 3, 5, 8),
        fc.constantFrom(1, 2, 3, 4),
        ({ sizes, e }, extent, by) => {
          const inside = bounded(e.index, extent);
          assert.ok(inside.min >= 0 && inside.max < extent);
          const [quotient, rest] = [div(inside, by), mod(inside, by)];
          for (const at of places(axesOf(sizes))) {
            const value = e.mean(at);
            if (value < 0 || value >= extent) continue;
            assert.ok(meaningOf(inside, at) === value, e.text);
            assert.ok(meaningOf(quotient, at) === Math.floor(value / by), e.text);
            assert.ok(meaningOf(rest, at) === value % by, e.text);
          }
        },
      ),
      { numRuns },
    );
  });
});

const size = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** Shapes of one size. */
const factorings = (n: number): number[][] => {
  if (n === 1) return [[], [1]];
  const out: number[][] = [[n]];
  for (let d = 2; d < n; d++) if (n % d === 0) for (const rest of factorings(n / d)) out.push([d, ...rest]);
  return out;
};

describe("movements", () => {
  test("linearize undoes delinearize, whatever the shape", () => {
    for (const n of [1, 6, 12, 24, 30, 36, 64])
      for (const shape of factorings(n)) {
        const position = axis("p", n);
        assert.equal(linearize(delinearize(position, shape), shape).key, position.key, `[${shape}]`);
      }
  });

  test("delinearize undoes linearize", () => {
    for (const n of [6, 12, 24, 36])
      for (const shape of factorings(n)) {
        const at = shape.map((extent, i) => axis(`a${i}`, extent));
        assert.deepEqual(
          delinearize(linearize(at, shape), shape).map((i) => i.key),
          at.map((i) => i.key),
          `[${shape}]`,
        );
      }
  });

  test("reshape to any shape and back is the identity, for every pair of shapes of a size", () => {
    for (const n of [12, 24, 36])
      for (const from of factorings(n))
        for (const to of factorings(n)) {
          const at = from.map((extent, i) => axis(`a${i}`, extent));
          const back = delinearize(linearize(delinearize(linearize(at, from), to), to), from);
          assert.deepEqual(
            back.map((i) => i.key),
            at.map((i) => i.key),
            `[${from}] → [${to}] → [${from}]`,
          );
        }
  });

  /** [what, expression, its text] */
  const r = axis("r", 6);
  const c = axis("c", 8);
  const position = add(scale(r, 8), c);
  const golden: readonly (readonly [string, Index, string])[] = [
    ["a row of a matrix", div(position, 8), "0+1*r"],
    ["a column of a matrix", mod(position, 8), "0+1*c"],
    ["two rows at once", div(position, 16), "0+1*(0+1*r)/2"],
    ["a head of a projection [6, 2, 4] → head", mod(div(position, 4), 2), "0+1*(0+1*c)/4"],
    ["a head of a projection [6, 2, 4] → place in the head", mod(position, 4), "0+1*(0+1*c)%4"],
    ["a quotient and its rest", add(scale(div(c, 3), 3), mod(c, 3)), "0+1*c"],
    ["a scaled quotient and its rest", add(scale(div(c, 3), 30), scale(mod(c, 3), 10)), "0+10*c"],
    ["a quotient of a quotient", div(div(c, 2), 2), "0+1*(0+1*c)/4"],
    ["a rest of a rest", mod(mod(c, 4), 2), "0+1*(0+1*c)%2"],
    ["a flip of a flip", offset(scale(offset(scale(c, -1), 7), -1), 7), "0+1*c"],
    ["a multiple by its divisor", div(scale(c, 12), 4), "0+3*c"],
    ["a constant that carries", div(offset(scale(c, 4), 5), 4), "1+1*c"],
    ["the rest of a constant that carries", mod(offset(scale(c, 4), 5), 4), "1"],
    ["a quotient of what falls", div(scale(c, -1), 3), "-3+1*(9+-1*c)/3"],
    ["the rest of what falls", mod(offset(scale(c, -1), 7), 3), "0+1*(7+-1*c)%3"],
    ["an axis of one step", add(axis("one", 1), c), "0+1*c"],
    ["equal sums in another order", add(c, scale(r, 8)), position.key],
  ];
  for (const [what, index, key] of golden)
    test(`simplify ${what}`, () => {
      assert.equal(index.key, key);
    });

  test("transposing and merging three axes leaves four divisions and the right element", () => {
    // [2, 3, 4] → permute [2, 0, 1] → reshape [24]
    const flat = axis("p", 24);
    const [a2, a0, a1] = delinearize(flat, [4, 2, 3]);
    const read = linearize([a0, a1, a2], [2, 3, 4]);
    assert.ok(divisions(read) <= 4, read.key);
    for (let p = 0; p < 24; p++) {
      const [x, y, z] = [Math.floor(p / 6), Math.floor(p / 3) % 2, p % 3];
      assert.equal(meaningOf(read, new Map([["p", p]])), (y * 3 + z) * 4 + x);
    }
  });

  test("slices with steps are affine", () => {
    const at = [axis("i", 3), axis("j", 4)];
    const read = linearize([offset(scale(at[0], -2), 4), offset(scale(at[1], 2), 1)], [5, 9]);
    assert.deepEqual([...(affine(read)?.coefficients ?? [])].sort(), [
      ["i", -18],
      ["j", 2],
    ]);
    assert.equal(affine(read)?.constant, 37);
    assert.equal(affine(div(c, 3)), null);
  });

  test("random movements read the element that they say", () => {
    const shapes = fc.array(fc.constantFrom(1, 2, 3, 4, 5), { minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(shapes, fc.array(fc.nat(), { minLength: 1, maxLength: 6 }), (shape, choices) => {
        // a list of position vectors runs beside the expressions
        let at: Index[] = [axis("p", size(shape))];
        let outer: readonly number[] = [size(shape)];
        let brute: (p: readonly number[]) => number[] = (p) => [...p];
        for (const choice of choices) {
          const list = factorings(size(outer));
          const next = choice % 2 ? list[choice % list.length] : outer;
          const before = outer;
          if (choice % 2) {
            const previous = brute;
            at = delinearize(linearize(at, before), next);
            brute = (p) => spread(flatten(previous(p), before), next);
            outer = next;
          } else {
            const turn = (list: readonly number[]) => [...list.slice(1), ...list.slice(0, 1)];
            const previous = brute;
            const flips = before.map((_, i) => (choice >> (i + 1)) % 2 === 1);
            const moved = at.map((x, i) => (flips[i] ? offset(scale(x, -1), before[i] - 1) : x));
            at = [...moved.slice(1), ...moved.slice(0, 1)];
            brute = (p) => turn(previous(p).map((x, i) => (flips[i] ? before[i] - 1 - x : x)));
            outer = turn(before);
          }
        }
        const read = linearize(at, outer);
        for (let p = 0; p < size(shape); p++)
          assert.equal(meaningOf(read, new Map([["p", p]])), flatten(brute([p]), outer), read.key);
      }),
      { numRuns: numRuns / 4 },
    );
  });
});

function flatten(at: readonly number[], shape: readonly number[]): number {
  return at.reduce((sum, x, i) => sum * shape[i] + x, 0);
}
function spread(position: number, shape: readonly number[]): number[] {
  const out = new Array<number>(shape.length);
  for (let i = shape.length - 1; i >= 0; i--) {
    out[i] = position % shape[i];
    position = Math.floor(position / shape[i]);
  }
  return out;
}
