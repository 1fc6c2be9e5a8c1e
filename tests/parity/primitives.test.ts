/**
 * Every row of the table of primitives, in every dtype that it accepts, in every layout, on every backend present,
 * compared with what PyTorch computed (fixtures/primitives.json, written by generate.py). A cell without a case fails,
 * unless the table of exclusions below names it and says why.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Backend } from "../../src/backends/backend.ts";
import type { DType } from "../../src/core/dtype.ts";
import { isFloat } from "../../src/core/dtype.ts";
import { accepts, primitives } from "../../src/graph/primitives.ts";
import { backendsUnderTest, isBrief, leavesAlike } from "../support/backends.ts";
import { evaluate } from "../support/evaluate.ts";
import { firstDifference, tolerances, valuesOf } from "../support/fixtures.ts";
import { type Case, fixture, type Layout, nodeOf } from "../support/primitives.ts";

interface Exclusion {
  readonly rows: readonly string[];
  readonly dtypes?: readonly DType[];
  readonly layouts?: readonly Layout[];
  readonly why: string;
}

/** Cells that have no case, and why. A line that excludes nothing fails the test. */
const exclusions: readonly Exclusion[] = [
  {
    rows: ["loop", "placeholder"],
    why: "PyTorch has no loop that it records; tests/backends/loops.test.ts compares loops with the same steps written out",
  },
  { rows: ["random"], why: "PyTorch has no Threefry; tests/backends/reference/random.test.ts has the paper's vectors" },
  {
    rows: ["iota"],
    dtypes: ["float32", "float64", "float16", "bfloat16", "uint32", "uint8", "bool"],
    why: "positions are always int32",
  },
  { rows: ["iota"], layouts: ["strided", "broadcast", "0-d"], why: "a leaf without inputs, with at least one axis" },
  {
    rows: ["const", "scalar"],
    layouts: ["contiguous", "strided", "broadcast", "empty"],
    why: "a single number: it has no layout",
  },
  { rows: ["sign"], layouts: ["special"], why: "Nabla's sign of NaN is NaN (NumPy's), PyTorch's is 0" },
  {
    rows: [
      ...["sum", "prod", "reduceMax", "reduceMin", "argmax", "argmin", "cumsum", "cumprod", "cummax", "concat"],
      ...["contract", "gather", "scatter", "argsort"],
    ],
    layouts: ["0-d"],
    why: "works along an axis, and a tensor without dimensions has none (the builders give it one, or skip the row)",
  },
];

/** NaN, the infinities and −0 exist in floats only. */
const layoutsOf = (dtype: DType, layouts: readonly Layout[]): readonly Layout[] =>
  isFloat(dtype) ? layouts : layouts.filter((layout) => layout !== "special");

const excludes = (e: Exclusion, row: string, dtype: DType, layout: Layout): boolean =>
  e.rows.includes(row) && (e.dtypes?.includes(dtype) ?? true) && (e.layouts?.includes(layout) ?? true);

test("every row, dtype and layout has a case from PyTorch, or a reason why not", () => {
  const present = new Set(fixture.cases.map(({ row, dtype, layout }) => `${row} ${dtype} ${layout}`));
  const used = new Set<Exclusion>();
  const missing: string[] = [];
  for (const operation of Object.values(primitives)) {
    if (operation.group === "state") continue;
    for (const dtype of accepts.get(operation.name) as readonly DType[])
      for (const layout of layoutsOf(dtype, fixture.layouts)) {
        const cell = `${operation.name} ${dtype} ${layout}`;
        if (present.has(cell)) continue;
        const reasons = exclusions.filter((e) => excludes(e, operation.name, dtype, layout));
        for (const reason of reasons) used.add(reason);
        if (reasons.length === 0) missing.push(cell);
      }
  }
  assert.deepEqual(missing, [], "cells without a case");
  assert.deepEqual(
    exclusions.filter((e) => !used.has(e)).map((e) => e.why),
    [],
    "exclusions that exclude nothing",
  );
});

function rowsOf(cases: readonly Case[]): Map<string, Case[]> {
  const rows = new Map<string, Case[]>();
  for (const c of cases) {
    const list = rows.get(c.row);
    if (list) list.push(c);
    else rows.set(c.row, [c]);
  }
  return rows;
}

/** The dtypes of an ordinary run on a device that compiles slowly, and of its views on all others that compile. */
const few: readonly DType[] = ["float32", "int32", "bool"];

/** An ordinary run takes views of few dtypes where kernels are compiled: where an element is does not depend on what it is. */
const isTaken = (backend: Backend, { dtype, layout }: Case): boolean =>
  !leavesAlike(backend) || few.includes(dtype) || (layout !== "strided" && layout !== "broadcast");

for (const backend of await backendsUnderTest())
  describe(`${backend.name} agrees with PyTorch`, () => {
    const present = backend.dtypes.filter((dtype) => !isBrief(backend) || few.includes(dtype));
    for (const [row, cases] of rowsOf(fixture.cases.filter(({ dtype }) => present.includes(dtype))))
      test(row, async () => {
        const failures: string[] = [];
        // the cases of all dtypes are one program: a compiler is started for many kernels at once
        const some = cases
          .filter((c) => backend.dtypes.includes(fixture.arrays[c.output].dtype) && isTaken(backend, c))
          .map((c) => ({ c, root: nodeOf(backend, c), expected: fixture.arrays[c.output] }));
        const name = (c: Case): string => [c.dtype, c.layout, c.variant].filter(Boolean).join(", ");
        for (const { c, root, expected } of some)
          assert.deepEqual([root.dtype, root.shape], [expected.dtype, expected.shape], name(c));
        const results = await evaluate(
          backend,
          some.map(({ root }) => root),
        );
        some.forEach(({ c, expected }, i) => {
          const difference = firstDifference(results[i], valuesOf(expected), tolerances[expected.dtype], c.signedZero);
          if (difference) failures.push(`${name(c)}: ${difference}`);
        });
        assert.deepEqual(failures, []);
      });
  });
