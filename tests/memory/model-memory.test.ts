/**
 * What `nabla info` says that fine-tuning a model takes, against `nabla finetune` of that model, as the kernel counts it. The model is the
 * smallest of those that the constants were fitted to. With NABLA_LONG=1.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { CharTokenizer } from "../../src/data/index.ts";
import { fromConfig, savePretrained } from "../../src/models/index.ts";
import type { Module } from "../../src/nn/index.ts";
import { manualSeed } from "../../src/tensor/index.ts";
import { buildInto, root } from "../support/build.ts";
import { whyNoCpu } from "../support/cpu.ts";

const run = promisify(execFile);
const reason =
  (await whyNoCpu()) || (existsSync("/proc/self/status") ? false : "needs /proc, to read what is resident");
const skip = process.env["NABLA_LONG"] === "1" ? reason : "NABLA_LONG=1 compares plans with runs";

/** 168 M parameters. */
const config = {
  model_type: "llama",
  hidden_size: 1024,
  intermediate_size: 2816,
  num_hidden_layers: 12,
  num_attention_heads: 16,
  num_key_value_heads: 4,
  vocab_size: 16_000,
  max_position_embeddings: 1024,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: false,
};
const length = 512;

describe("what info says that fine-tuning takes", { skip }, () => {
  const room = mkdtempSync(join(tmpdir(), "nabla-memory-"));
  const build = join(root, `dist.${process.pid}.model-memory`);
  const model = join(room, "model");
  const data = join(room, "data.jsonl");
  before(async () => {
    buildInto(build); // an error of types is not this test's affair
    manualSeed(1);
    await savePretrained(fromConfig(config, { dtype: "bfloat16" }) as unknown as Module, model, { config });
    const letters = "abcdefghijklmnopqrstuvwxyz ";
    await CharTokenizer.fromText(letters).save(model);
    const text = Array.from({ length }, (_, i) => letters[(i * i + 7 * i) % letters.length]).join("");
    writeFileSync(data, `${JSON.stringify({ text })}\n`.repeat(4));
  });
  after(() => {
    rmSync(room, { recursive: true, force: true });
    rmSync(build, { recursive: true, force: true });
  });

  /** Runs a command of the build in a process of its own; gives what it prints, and its peak in bytes. */
  async function nabla(...args: string[]): Promise<{ stdout: string; peak: number }> {
    const main = pathToFileURL(join(build, "cli/main.js")).href;
    const script = `import { readFileSync } from "node:fs";
      const { main } = await import(${JSON.stringify(main)});
      process.exitCode = await main(process.argv.slice(1));
      console.log("\\n" + /VmHWM:\\s+(\\d+)/.exec(readFileSync("/proc/self/status", "utf8"))[1]);`;
    const flags = ["--input-type=module", "-e", script, "--", ...args, "--device", "cpu"];
    const { stdout } = await run(process.execPath, flags, { cwd: room });
    const lines = stdout.trimEnd().split("\n");
    return { stdout: lines.slice(0, -1).join("\n"), peak: 1024 * Number(lines.at(-1)) };
  }

  for (const recompute of [[], ["--recompute"]])
    for (const method of ["LoRA", "QLoRA"]) {
      test(`is within 10 % of what it takes: ${[method, ...recompute].join(" ")}`, async () => {
        const { stdout } = await nabla("info", model, "--json", "--length", String(length), ...recompute);
        const { memory } = JSON.parse(stdout) as { memory: { name: string; memory: { total: number } }[] };
        const planned = memory.find(({ name }) => name === method)!.memory.total;
        const out = join(room, [method, ...recompute].join(""));
        const { peak } = await nabla(
          ...["finetune", model, "--method", method.toLowerCase(), "--data", data, "--eval", data, "--out", out],
          ...["--batch", "1", "--steps", "4", "--max-length", String(length), "--samples", "0", ...recompute],
        );
        const text = `planned ${(planned / 1e6).toFixed(0)} MB, measured ${(peak / 1e6).toFixed(0)} MB`;
        console.log(`${[method, ...recompute].join(" ")}: ${text} (${((100 * peak) / planned).toFixed(0)} %)`);
        assert.ok(Math.abs(peak / planned - 1) <= 0.1, text);
      });
    }
});
