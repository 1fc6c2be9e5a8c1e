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
import { backendsUnderTest, floatsOf, isBrief } from "../support/backends.ts";
import { differencesOf, type Expectation, type LayerCase, throughLayer } from "../support/calls.ts";
import { readFixture } from "../support/fixtures.ts";

type Name = "RNN" | "GRU" | "LSTM";

/** Inputs: the sequence, then the first states, if any. */
interface Case extends LayerCase {
  readonly name: Name;
  readonly args: readonly [inputSize: number, hiddenSize: number, options: nn.RNNOptions];
}

const layers = { RNN: nn.RNN, GRU: nn.GRU, LSTM: nn.LSTM };

const { cases } = readFixture<{ cases: readonly Case[] }>("recurrent");

function record(c: Case, dtype: DType): Expectation[] {
  const what = `${dtype}: ${c.name}(${JSON.stringify(c.args)}) of ${c.inputs.map(({ shape }) => `[${shape}]`).join(" ")}:`;
  const layer = new layers[c.name](...c.args);
  return throughLayer(c, layer, what, dtype, ([x, ...states]) => {
    const state = states.length === 0 ? undefined : states.length === 1 ? states[0] : states;
    return (layer.forward as (x: Tensor, state?: unknown) => unknown).call(layer, x, state);
  });
}

for (const backend of await backendsUnderTest()) {
  const { name: device } = backend;
  describe(`recurrent layers on ${device} agree with torch.nn`, () => {
    for (const name of ["RNN", "GRU", "LSTM"] as const)
      test(name, async () => {
        setDevice(device);
        const failures: string[] = [];
        for (const dtype of floatsOf(backend)) {
          const all = cases.filter((c) => c.name === name);
          const list = (isBrief(backend) ? all.slice(0, 2) : all).flatMap((c) => record(c, dtype));
          failures.push(...(await differencesOf(list, dtype)));
        }
        assert.deepEqual(failures, []);
      });
  });
}
