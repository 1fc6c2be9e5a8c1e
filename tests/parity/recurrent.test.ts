/**
 * RNN, GRU and LSTM with first states, on every device present, against torch.nn (fixtures/recurrent.json, written by
 * generate.py): outputs, last states, all gradients; several lengths, layers, directions, with and without a batch.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { DType } from "../../src/core/dtype.ts";
import { setDevice } from "../../src/execution/index.ts";
import * as nn from "../../src/nn/index.ts";
import type { Tensor } from "../../src/tensor/index.ts";
import { backendsUnderTest, isBrief } from "../support/backends.ts";
import { differencesOf, type Expectation, listed, load } from "../support/calls.ts";
import { readFixture, type Stored } from "../support/fixtures.ts";

type Name = "RNN" | "GRU" | "LSTM";

interface Case {
  readonly name: Name;
  readonly args: readonly [inputSize: number, hiddenSize: number, options: nn.RNNOptions];
  readonly state: Readonly<Record<string, Stored>>;
  /** The sequence, then the first states, if any. */
  readonly inputs: readonly Stored[];
  readonly outputs: readonly Stored[];
  readonly seeds: readonly Stored[];
  readonly gradients: Readonly<Record<string, Stored>>;
}

const layers = { RNN: nn.RNN, GRU: nn.GRU, LSTM: nn.LSTM };

const { cases } = readFixture<{ cases: readonly Case[] }>("recurrent");

function record(c: Case, dtype: DType): Expectation[] {
  const what = `${dtype}: ${c.name}(${JSON.stringify(c.args)}) of ${c.inputs.map(({ shape }) => `[${shape}]`).join(" ")}:`;
  const layer = new layers[c.name](...c.args);
  layer.to(dtype);
  layer.loadStateDict(Object.fromEntries(Object.entries(c.state).map(([key, stored]) => [key, load(stored, dtype)])));
  const inputs = c.inputs.map((stored) => load(stored, dtype, true));
  const [x, ...states] = inputs;
  const state = states.length === 0 ? undefined : states.length === 1 ? states[0] : states;
  const outputs = listed((layer.forward as (x: Tensor, state?: unknown) => unknown).call(layer, x, state));
  c.seeds
    .map((seed, i) => outputs[i].mul(load(seed, dtype)).sum())
    .reduce((a, b) => a.add(b))
    .backward();
  const parameters = new Map<string, Tensor>(layer.namedParameters());
  const gradientOf = (name: string): Tensor | null | undefined =>
    (name.startsWith("input ") ? inputs[Number(name.slice(6))] : parameters.get(name))?.grad;
  return [
    ...c.outputs.map((expected, i) => ({ what: `${what} output ${i}`, got: outputs[i], expected })),
    ...Object.entries(c.gradients).map(([name, expected]) => ({
      what: `${what} gradient of ${name}`,
      got: gradientOf(name),
      expected,
    })),
  ];
}

for (const backend of await backendsUnderTest()) {
  const { name: device, dtypes } = backend;
  describe(`recurrent layers on ${device} agree with torch.nn`, () => {
    for (const name of ["RNN", "GRU", "LSTM"] as const)
      test(name, async () => {
        setDevice(device);
        const failures: string[] = [];
        for (const dtype of (["float64", "float32"] as const).filter((each) => dtypes.includes(each))) {
          const all = cases.filter((c) => c.name === name);
          const list = (isBrief(backend) ? all.slice(0, 2) : all).flatMap((c) => record(c, dtype));
          failures.push(...(await differencesOf(list, dtype)));
        }
        assert.deepEqual(failures, []);
      });
  });
}
