/**
 * Attention without its table on WebGPU, forward and backward, against the decomposition on the reference backend: several
 * tiles and blocks, shared heads, unequal lengths and widths, operands that are views of one tensor. On a software adapter
 * a subgroup works alone; without subgroups it is in tiles, as on a GPU.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Backend } from "../../../src/backends/backend.ts";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import type { Attention } from "../../../src/backends/webgpu/attention.ts";
import { openWebGpuBackend } from "../../../src/backends/webgpu/index.ts";
import * as c from "../../../src/graph/composites/index.ts";
import type { Node } from "../../../src/graph/node.ts";
import * as o from "../../../src/graph/ops.ts";
import { orReason } from "../../support/backends.ts";
import { captureOf, evaluate, nodeFrom } from "../../support/evaluate.ts";
import { assertClose } from "../../support/fixtures.ts";

const opened = await orReason(
  Promise.all([openWebGpuBackend(), openWebGpuBackend({ features: { subgroups: false } })]),
);
const skip = typeof opened === "string" ? opened : false;
const ways = typeof opened === "string" ? [] : [opened[0], ...(opened[0].device.lanes > 0 ? [opened[1]] : [])];

type Sizes = Pick<Attention, "B" | "H" | "Hkv" | "Tq" | "Tk" | "D" | "Dv" | "causal">;

/** The output, the log-sum-exp and the three gradients. */
function build(on: Backend, { B, H, Hkv, Tq, Tk, D, Dv, causal }: Sizes, joint: boolean): Node[] {
  let seed = 0;
  const leaf = (shape: number[]): Node => {
    seed++;
    const n = shape.reduce((a, b) => a * b, 1);
    const values = Float32Array.from({ length: n }, (_, i) => 2 * Math.sin(i * (0.37 + 0.01 * seed) + seed));
    return nodeFrom(on, values, shape, "float32");
  };
  const heads = (x: Node): Node => o.permute(x, [0, 2, 1, 3]);
  const made = (): [Node, Node, Node] => {
    if (!joint) return [leaf([B, H, Tq, D]), leaf([B, Hkv, Tk, D]), leaf([B, Hkv, Tk, Dv])];
    const all = leaf([B, Tq, 3, H, D]);
    const part = (i: number): Node => heads(o.reshape(o.narrow(all, 2, i, 1), [B, Tq, H, D]));
    return [part(0), part(1), part(2)];
  };
  const [q, k, v] = made();
  const attrs = { causal, scale: 0.4, length: false, mask: false };
  const { out, lse } = c.attention(q, k, v, { causal, scale: 0.4 });
  const gradient = leaf([B, Tq, H, Dv]);
  const { dq, dk, dv } = c.attentionBackward({ q, k, v, out, lse }, gradient, attrs, { length: null, mask: null });
  return [out, lse, dq, dk, dv];
}

const cases: readonly [string, Sizes, boolean][] = [
  ["several blocks and tiles", { B: 1, H: 2, Hkv: 2, Tq: 150, Tk: 150, D: 16, Dv: 16, causal: true }, false],
  ["shared heads, unequal sizes", { B: 2, H: 4, Hkv: 2, Tq: 70, Tk: 45, D: 12, Dv: 8, causal: false }, false],
  ["views of one tensor", { B: 2, H: 3, Hkv: 3, Tq: 33, Tk: 33, D: 8, Dv: 8, causal: true }, true],
  ["wide heads", { B: 1, H: 1, Hkv: 1, Tq: 20, Tk: 20, D: 96, Dv: 96, causal: true }, false],
];

for (const [what, sizes, joint] of cases)
  test(`attention: ${what}`, { skip }, async () => {
    const expected = await evaluate(referenceBackend(), build(referenceBackend(), sizes, joint));
    for (const backend of ways) {
      const program = await backend.compile(captureOf(build(backend, sizes, joint)));
      assert.match(program.describe("graph"), / = attention .*\n(.*\n)*.* = attentionBackward /, "it was decomposed");
      const got = await evaluate(backend, build(backend, sizes, joint));
      const names = ["output", "log-sum-exp", "dq", "dk", "dv"];
      got.forEach((values, i) => {
        assertClose(`${names[i]}, lanes ${backend.device.lanes}`, values, expected[i], { rtol: 1e-4, atol: 2e-5 });
      });
    }
  });
