/**
 * The cases of the table of primitives: every row, dtype and layout, with what PyTorch computed (parity/fixtures/primitives.json,
 * written by parity/generate.py), and how a case is recorded.
 */
import assert from "node:assert/strict";
import type { Backend } from "../../src/backends/backend.ts";
import type { DType } from "../../src/core/dtype.ts";
import { type Attrs, make, type Node, operations } from "../../src/graph/node.ts";
import { constant, detach, scalar } from "../../src/graph/ops.ts";
import { primitives } from "../../src/graph/primitives.ts";
import { nodeFromRaw } from "./evaluate.ts";
import { rawOf, readFixture, type Stored } from "./fixtures.ts";

export type Layout = "contiguous" | "strided" | "broadcast" | "0-d" | "empty" | "special";

export interface Case {
  readonly row: string;
  readonly dtype: DType;
  readonly layout: Layout;
  readonly variant?: string;
  readonly signedZero?: boolean;
  /** Numbers of views. */
  readonly inputs: readonly number[];
  readonly attrs: Attrs;
  /** Number of an array. */
  readonly output: number;
}

interface Fixture {
  readonly layouts: readonly Layout[];
  readonly arrays: readonly Stored[];
  /** A stored array, and the movements that make the view of it. */
  readonly views: readonly { readonly array: number; readonly view?: readonly (readonly [string, Attrs])[] }[];
  readonly cases: readonly Case[];
}

export const fixture = readFixture<Fixture>("primitives");

const leafRows: Readonly<Record<string, (c: Case, inputs: readonly Node[]) => Node>> = {
  buffer: (_, [x]) => detach(x),
  const: ({ attrs }) => detach(constant(Number(attrs["value"]), attrs["dtype"] as DType)),
  scalar: ({ attrs }) => detach(scalar(Number(attrs["value"]), attrs["dtype"] as DType)),
};

/** Records a case. */
export function nodeOf(backend: Backend, c: Case): Node {
  const inputs = c.inputs.map((i) => {
    const { array, view = [] } = fixture.views[i];
    const stored = fixture.arrays[array];
    let node = nodeFromRaw(backend, rawOf(stored), stored.shape, stored.dtype);
    for (const [name, attrs] of view) node = make(primitives[name as keyof typeof primitives], [node], attrs);
    return node;
  });
  const leafRow = leafRows[c.row];
  if (leafRow) return leafRow(c, inputs);
  const operation = operations.get(c.row);
  assert.ok(operation, `no operation ${c.row}`);
  return make(operation, inputs, c.attrs);
}
