/**
 * The tests that run on every backend, on one backend of the browser build in headless Chromium: the operation table and
 * its gradients beside PyTorch's, meanings and bad input, random programs, loops, layers, optimizers and training.
 */
import { test } from "node:test";
import { chromiumPath } from "../support/chromium.ts";

const bodies = [
  "parity/primitives",
  "parity/composites",
  "parity/gpt",
  "parity/training",
  "backends/semantics",
  "backends/random-programs",
];
/** Those that an ordinary run leaves to the long one. */
const more = ["parity/tensors", "parity/layers", "parity/optim", "parity/recurrent", "backends/loops", "models/models"];

/** Declares the tests of every body for one backend ("chromium-wasm"). */
export async function declareBodies(backend: string): Promise<void> {
  if (!chromiumPath()) {
    test(`the tests of every backend on ${backend}`, { skip: "there is no Chromium here" }, () => {});
    return;
  }
  process.env["NABLA_TEST_BACKENDS"] = backend;
  const files = process.env["NABLA_LONG"] === "1" ? [...bodies, ...more] : bodies;
  for (const file of files) await import(`../${file}.test.ts`);
}
