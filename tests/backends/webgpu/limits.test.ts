/**
 * The training steps of whole models keep to WebGPU's least limit of storage buffers, eight a kernel: every text is
 * assembled for it, none is compiled or run. Dispatches of small programs under small limits are in backend.test.ts.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Program } from "../../../src/backends/backend.ts";
import { Assembler, dispatchesOf } from "../../../src/backends/webgpu/assemble.ts";
import { openWebGpuBackend, type WebGpuBackend } from "../../../src/backends/webgpu/index.ts";
import { registerBackend, setDevice } from "../../../src/execution/index.ts";
import { ConvNet, GPT2 } from "../../../src/models/index.ts";
import * as nn from "../../../src/nn/index.ts";
import * as optim from "../../../src/optim/index.ts";
import { fromRaw, type Tensor, zeros } from "../../../src/tensor/index.ts";
import { orReason } from "../../support/backends.ts";

const opened = await orReason(openWebGpuBackend({ limits: { storageBuffers: 8 } }));
const skip = typeof opened === "string" ? opened : false;
const backend = opened as WebGpuBackend;

/** Storage buffers of the fullest dispatch, and dispatches, of each program that was made. */
const made: { readonly most: number; readonly steps: number }[] = [];
registerBackend("assembled only", () => ({
  ...backend,
  compile: (capture): Program => {
    const { steps, stats } = new Assembler(backend.device, capture, true).run();
    const counts = dispatchesOf(steps).map(
      ({ dispatch }) => dispatch.kinds.filter((kind) => kind !== "uniform").length,
    );
    made.push({ most: Math.max(...counts), steps: steps.length });
    return { stats, run: () => {}, describe: () => "" };
  },
}));

const ids = (...shape: number[]): Tensor => fromRaw(new Int32Array(shape.reduce((a, b) => a * b, 1)), "int32", shape);

async function step(model: nn.Module, loss: Tensor): Promise<void> {
  const optimizer = new optim.AdamW(model.parameters(), { lr: 1e-3 });
  loss.backward();
  optim.clipGradNorm_(model.parameters(), 1);
  await optimizer.step();
}

test("a step of a GPT and one of a convolutional network need no more than eight storage buffers a kernel", {
  skip,
}, async () => {
  setDevice("assembled only");
  const gpt = new GPT2({ vocabSize: 64, contextLength: 32, numLayers: 2, numHeads: 2, hiddenSize: 32 });
  const logits = gpt.forward(ids(2, 32)).reshape(-1, 64);
  await step(gpt, nn.functional.crossEntropy(logits, ids(64)));
  const net = new ConvNet();
  await step(net, nn.functional.crossEntropy(net.forward(zeros([4, 1, 28, 28])), ids(4)));
  assert.ok(made.filter(({ steps }) => steps > 30).length >= 2, JSON.stringify(made));
  for (const { most } of made) assert.ok(most <= 8, `a kernel binds ${most}`);
});
