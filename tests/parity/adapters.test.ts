/**
 * Adapters that PEFT writes with options of many kinds (fixtures/adapters.json, over the checkpoints of fixtures/pretrained): each gives PEFT's
 * logits or is refused by name. What is saved again loads as the same.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { setDevice } from "../../src/execution/index.ts";
import { type Adapted, loadAdapter } from "../../src/finetune/index.ts";
import { fromPretrained } from "../../src/models/index.ts";
import type { Module } from "../../src/nn/index.ts";
import { noGrad, type Tensor, tensor } from "../../src/tensor/index.ts";
import { assertClose, readFixture, type Stored, valuesOf } from "../support/fixtures.ts";

interface Case {
  readonly name: string;
  readonly base: "llama" | "distilbert";
  readonly config: Readonly<Record<string, unknown>>;
  readonly weights: { readonly file: string; readonly data: string };
  readonly ids: Stored;
  /** Of the last position, or of the head. */
  readonly logits: Stored;
}

setDevice("reference");
const { cases } = readFixture<{ readonly cases: readonly Case[] }>("adapters");
const refused: Readonly<Record<string, RegExp>> = {
  "weights of the model's own changed": /"init_lora_weights" is "pissa", which changes the model's own weights too/,
};

const room = mkdtempSync(join(tmpdir(), "nabla-adapters-"));
after(() => rmSync(room, { recursive: true, force: true }));

type Net = Module & { forward(ids: Tensor): Tensor };
const baseOf = (base: Case["base"]): Promise<Net> =>
  fromPretrained(fileURLToPath(new URL(`fixtures/pretrained/${base}`, import.meta.url)), {
    task: base === "distilbert" ? "classification" : "generation",
    tokenizer: null,
    dtype: "float32",
  }) as Promise<Net>;

async function logitsOf(model: Net, { ids }: Case): Promise<ArrayLike<number>> {
  model.eval();
  const y = noGrad(() => model.forward(tensor(valuesOf(ids) as Int32Array, { shape: ids.shape })));
  return (y.ndim === 3 ? y.select(1, y.shape[1] - 1) : y).data();
}

describe("adapters as PEFT writes them", () => {
  for (const [i, one] of cases.entries())
    test(one.name, async () => {
      const folder = mkdtempSync(join(room, `${i}-`));
      writeFileSync(join(folder, "adapter_config.json"), JSON.stringify(one.config));
      writeFileSync(join(folder, one.weights.file), Buffer.from(one.weights.data, "base64"));
      if (refused[one.name]) {
        await assert.rejects(loadAdapter(await baseOf(one.base), folder), refused[one.name]);
        return;
      }
      const tuned: Adapted<Net> = await loadAdapter(await baseOf(one.base), folder);
      const close = { rtol: 1e-4, atol: 1e-5 };
      assertClose("logits", await logitsOf(tuned, one), valuesOf(one.logits), close);
      const again = mkdtempSync(join(room, `${i}-again-`));
      await tuned.saveAdapter(again);
      const loaded = await loadAdapter(await baseOf(one.base), again);
      assert.deepEqual(await logitsOf(loaded, one), await logitsOf(tuned, one));
      tuned.mergeAndUnload();
      assertClose("merged", await logitsOf(tuned, one), valuesOf(one.logits), close);
    });
});
