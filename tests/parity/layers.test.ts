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
import { backendsUnderTest, floatsOf } from "../support/backends.ts";
import { differencesOf, type Expectation, type LayerCase, throughLayer } from "../support/calls.ts";
import { readFixture, type Stored } from "../support/fixtures.ts";

interface Case extends LayerCase {
  readonly name: string;
  /** The constructor's. */
  readonly args: readonly unknown[];
  readonly train: boolean;
  /** How often forward is called before anything is compared. */
  readonly passes: number;
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
  layer.train(c.train);
  const expectations = throughLayer(c, layer, what, dtype, (inputs) => {
    for (let pass = 1; pass < c.passes; pass++) layer.forward(...inputs);
    return layer.forward(...inputs);
  });
  const state = layer.stateDict();
  return [
    ...expectations,
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

for (const backend of await backendsUnderTest())
  describe(`nn on ${backend.name} agrees with torch.nn`, () => {
    for (const name of new Set(cases.map((c) => c.name)))
      if (modules[name])
        test(name, async () => {
          setDevice(backend.name);
          const failures: string[] = [];
          for (const dtype of floatsOf(backend)) {
            const list = cases.filter((c) => c.name === name).flatMap((c) => record(c, dtype));
            failures.push(...(await differencesOf(list, dtype)));
          }
          assert.deepEqual(failures, []);
        });
  });
