/**
 * Losing the device in the middle of training: fit ends with an error that says so, its checkpoint is whole, and the run
 * goes on from there on another device to where it would have come.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import type { WebGpuBackend } from "../../../src/backends/webgpu/index.ts";
import { BackendError } from "../../../src/core/errors.ts";
import { backendOf, setDevice } from "../../../src/execution/index.ts";
import * as nn from "../../../src/nn/index.ts";
import * as optim from "../../../src/optim/index.ts";
import { manualSeed, type Tensor, tensor } from "../../../src/tensor/index.ts";
import { type Callback, checkpointToResume, fit, saveCheckpoints } from "../../../src/train/index.ts";
import { orReason } from "../../support/backends.ts";

const opened = await orReason(backendOf("webgpu"));
const skip = typeof opened === "string" ? opened : false;

/** A line of points to fit, anew on each device. */
function start(device: string) {
  setDevice(device);
  manualSeed(5);
  const model = new nn.Sequential(new nn.Linear(1, 16), new nn.Tanh(), new nn.Linear(16, 1));
  const x = tensor(Array.from({ length: 32 }, (_, i) => [i / 16 - 1]));
  const y = tensor(Array.from({ length: 32 }, (_, i) => [Math.sin(i / 8)]));
  const options = {
    optimizer: new optim.AdamW(model.parameters(), { lr: 0.02 }),
    train: [[x, y]] as [Tensor, Tensor][],
    loss: (a: Tensor, b: Tensor) => a.sub(b).pow(2).mean(),
    epochs: 40,
  };
  return { model, options };
}

test("a device lost in training is said to be lost; the checkpoint is whole and the run goes on elsewhere", {
  skip,
}, async () => {
  const dir = mkdtempSync(join(tmpdir(), "nabla-lost-"));
  try {
    const truth = start("reference");
    const { history } = await fit(truth.model, truth.options);
    const { model, options } = start("webgpu");
    const lose: Callback = {
      name: "lose",
      wants: (step) => step === 25,
      onStep: async (_, { step }) => {
        if (step === 25) ((await backendOf("webgpu")) as WebGpuBackend).device.gpu.destroy();
      },
    };
    const callbacks = [saveCheckpoints({ every: 10, dir }), lose];
    await assert.rejects(
      fit(model, { ...options, callbacks }),
      (e) => e instanceof BackendError && /the device was lost.*last checkpoint/.test(e.message),
    );
    const resume = await checkpointToResume(dir);
    assert.ok(resume?.includes("20"), `the last checkpoint is of step 20: ${resume}`);
    const again = start("reference");
    const rest = await fit(again.model, { ...again.options, resume });
    assert.equal(rest.step, 40);
    const [last, expected] = [rest.history, history].map((h) => h[h.length - 1].loss);
    assert.ok(Math.abs(last - expected) < 1e-3 * expected, `the loss ends at ${last}, expected ${expected}`);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});
