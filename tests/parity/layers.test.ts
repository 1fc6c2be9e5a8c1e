/**
 * The layers and losses of nn, on every device present, against torch.nn (fixtures/layers.json, written by generate.py):
 * the same state dict, the same inputs; outputs, gradients of inputs and parameters, running statistics.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { DType } from "../../src/core/dtype.ts";
import { setDevice } from "../../src/execution/index.ts";
import * as nn from "../../src/nn/index.ts";
import type { Tensor } from "../../src/tensor/index.ts";
import { backendsUnderTest } from "../support/backends.ts";
import { differencesOf, type Expectation, listed, load } from "../support/calls.ts";
import { readFixture, type Stored } from "../support/fixtures.ts";

interface Case {
  readonly name: string;
  /** The constructor's. */
  readonly args: readonly unknown[];
  readonly train: boolean;
  /** How often forward is called before anything is compared. */
  readonly passes: number;
  readonly state: Readonly<Record<string, Stored>>;
  readonly inputs: readonly Stored[];
  readonly outputs: readonly Stored[];
  readonly seeds: readonly Stored[];
  /** By parameter, or "input 0", "input 1" … */
  readonly gradients: Readonly<Record<string, Stored>>;
  /** Buffers after the passes. */
  readonly buffers: Readonly<Record<string, Stored>>;
}

/** Modules of torch.nn that have cases and that Nabla does not have. One that it has must leave this list. */
const absent: readonly string[] = ["MultiheadAttention", "TransformerEncoderLayer"];

const { cases } = readFixture<{ cases: readonly Case[] }>("layers");

type Constructor = new (...args: unknown[]) => nn.Module & { forward(...inputs: Tensor[]): unknown };
const modules = nn as unknown as Readonly<Record<string, Constructor | undefined>>;

/** Runs a case's passes and its backward pass, and lists what came of it with what it should be. */
function record(c: Case, dtype: DType): Expectation[] {
  const what = `${dtype}: ${c.name}(${JSON.stringify(c.args).slice(1, -1)})${c.train ? "" : ".eval()"} of ${c.inputs.map(({ shape }) => `[${shape}]`).join(" ")}:`;
  const layer = new (modules[c.name] as Constructor)(...c.args);
  layer.to(dtype);
  layer.loadStateDict(Object.fromEntries(Object.entries(c.state).map(([key, stored]) => [key, load(stored, dtype)])));
  layer.train(c.train);
  const inputs = c.inputs.map((stored, i) => load(stored, dtype, `input ${i}` in c.gradients));
  let outputs: Tensor[] = [];
  for (let pass = 0; pass < c.passes; pass++) outputs = listed(layer.forward(...inputs));
  assert.ok(outputs.length >= c.outputs.length, `${what} ${outputs.length} outputs`);
  c.seeds
    .map((seed, i) => outputs[i].mul(load(seed, dtype)).sum())
    .reduce((a, b) => a.add(b))
    .backward();
  const parameters = new Map<string, Tensor>(layer.namedParameters());
  const gradientOf = (name: string): Tensor | null | undefined =>
    (name.startsWith("input ") ? inputs[Number(name.slice(6))] : parameters.get(name))?.grad;
  const state = layer.stateDict();
  return [
    ...c.outputs.map((expected, i) => ({ what: `${what} output ${i}`, got: outputs[i], expected })),
    ...Object.entries(c.gradients).map(([name, expected]) => ({
      what: `${what} gradient of ${name}`,
      got: gradientOf(name),
      expected,
    })),
    ...Object.entries(c.buffers).map(([name, expected]) => ({ what: `${what} ${name}`, got: state[name], expected })),
  ];
}

test("every module of torch.nn with cases is there, or is listed as absent", () => {
  const names = [...new Set(cases.map(({ name }) => name))];
  assert.deepEqual(
    names.filter((name) => !modules[name]),
    absent,
  );
});

for (const { name: device, dtypes } of await backendsUnderTest())
  describe(`nn on ${device} agrees with torch.nn`, () => {
    for (const name of new Set(cases.map((c) => c.name)))
      if (modules[name])
        test(name, async () => {
          setDevice(device);
          const failures: string[] = [];
          for (const dtype of (["float64", "float32"] as const).filter((each) => dtypes.includes(each))) {
            const list = cases.filter((c) => c.name === name).flatMap((c) => record(c, dtype));
            failures.push(...(await differencesOf(list, dtype)));
          }
          assert.deepEqual(failures, []);
        });
  });
