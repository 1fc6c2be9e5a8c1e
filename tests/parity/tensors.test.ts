/**
 * Operations as a user calls them, on every device present, against PyTorch (fixtures/tensors.json, written by
 * generate.py): values, shapes, dtypes and gradients, in float64 and float32 (backends.ts, `floatsOf`); and the promotion of dtypes.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { DType } from "../../src/core/dtype.ts";
import { setDevice } from "../../src/execution/index.ts";
import * as tensors from "../../src/tensor/index.ts";
import { type Tensor, variance } from "../../src/tensor/index.ts";
import { backendsUnderTest, floatsOf } from "../support/backends.ts";
import { differencesOf, type Expectation, listed, load } from "../support/calls.ts";
import { readFixture, type Stored } from "../support/fixtures.ts";

interface Case {
  readonly name: string;
  /** The arguments; "T0", "T1" … stand for the tensors. */
  readonly call: readonly unknown[];
  readonly tensors: readonly Stored[];
  readonly outputs: readonly Stored[];
  readonly seed?: Stored;
  /** By the number of the tensor. */
  readonly gradients?: Readonly<Record<string, Stored>>;
}

/** operation, dtype and axes of a, dtype (or the number) and axes of b, dtype of the result */
type Promotion = readonly [string, DType, number, DType | number | boolean | null, number, DType];

const fixture = readFixture<{ cases: readonly Case[]; promotion: readonly Promotion[] }>("tensors");

type Call = (...args: unknown[]) => unknown;
const functions: Readonly<Record<string, unknown>> = { ...tensors, var: variance };

function argument(value: unknown, given: readonly Tensor[]): unknown {
  if (typeof value === "string" && /^T\d$/.test(value)) return given[Number(value.slice(1))];
  if (value === "Infinity" || value === "-Infinity") return Number(value);
  if (Array.isArray(value)) return value.map((each) => argument(each, given));
  if (typeof value === "object" && value !== null)
    return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, argument(each, given)]));
  return value;
}

/** Calls the function, and lists its results and gradients with what they should be. */
function record(c: Case, dtype: DType): Expectation[] {
  const what = `${dtype}: ${c.name}(${JSON.stringify(c.call).slice(1, -1)}) of ${c.tensors.map(({ shape }) => `[${shape}]`).join(" ")}:`;
  const differentiable = Object.keys(c.gradients ?? {});
  const given = c.tensors.map((stored, i) => load(stored, dtype, differentiable.includes(String(i))));
  const outputs = listed((functions[c.name] as Call)(...c.call.map((value) => argument(value, given))));
  assert.equal(outputs.length, c.outputs.length, `${what} number of results`);
  const list = c.outputs.map((expected, i) => ({ what: `${what} result ${i}`, got: outputs[i], expected }));
  if (!c.seed || !c.gradients) return list;
  outputs[0].backward(load(c.seed, dtype));
  for (const [i, expected] of Object.entries(c.gradients))
    list.push({ what: `${what} gradient of T${i}`, got: given[Number(i)].grad as Tensor, expected });
  return list;
}

const groupsOf = (cases: readonly Case[]): string[] => [...new Set(cases.map(({ name }) => name))];

for (const backend of await backendsUnderTest())
  describe(`tensors on ${backend.name} agree with PyTorch`, () => {
    for (const name of groupsOf(fixture.cases))
      test(name, async () => {
        setDevice(backend.name);
        assert.equal(typeof functions[name], "function", `there is no function ${name}`);
        const failures: string[] = [];
        for (const dtype of floatsOf(backend)) {
          const list = fixture.cases.filter((c) => c.name === name).flatMap((c) => record(c, dtype));
          failures.push(...(await differencesOf(list, dtype)));
        }
        assert.deepEqual(failures, []);
      });
  });

test("dtypes promote as PyTorch's, int64 counting as int32", () => {
  const failures: string[] = [];
  for (const [operation, a, axes, b, otherAxes, expected] of fixture.promotion) {
    const x = tensors.ones(new Array<number>(axes).fill(2), { dtype: a });
    const y = typeof b === "string" ? tensors.ones(new Array<number>(otherAxes).fill(2), { dtype: b }) : b;
    const what = `${operation}(${a} of ${axes} axes${b === null ? "" : `, ${b}${otherAxes < 0 ? "" : ` of ${otherAxes} axes`}`})`;
    try {
      const { dtype } = (functions[operation] as Call)(...(y === null ? [x] : [x, y])) as Tensor;
      if (dtype !== expected) failures.push(`${what} is ${dtype}, expected ${expected}`);
    } catch (error) {
      failures.push(`${what}: ${error instanceof Error ? error.message : error}`);
    }
  }
  assert.deepEqual(failures, []);
});
