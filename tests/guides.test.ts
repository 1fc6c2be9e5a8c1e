/** The guides on pretrained models are true: their code has the right types and runs as it stands, with a tiny model in the model's place. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { nativeDevice } from "./support/cpu.ts";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const exports = JSON.parse(readFileSync(join(root, "package.json"), "utf8")).exports as Record<
  string,
  { default: string }
>;

const room = mkdtempSync(join(root, "tests", ".guide-"));
after(() => rmSync(room, { recursive: true, force: true }));

/** A guide's code in a file of its own, with the package by its sources so that no build is needed. */
function codeFile(guide: string): string {
  const text = readFileSync(join(root, "docs", guide), "utf8");
  const blocks = [...text.matchAll(/```ts\n([\s\S]*?)```/g)].map((match) => match[1]);
  assert.ok(blocks.length > 0);
  const code = blocks.join("\n").replace(/from "nabla(\/\w+)?"/g, (_, path?: string) => {
    const entry = exports[path === undefined ? "." : `.${path}`];
    assert.ok(entry, `the package exports no nabla${path}`);
    return `from ${JSON.stringify(join(root, entry.default.replace("./dist/", "src/").replace(/\.js$/, ".ts")))}`;
  });
  const file = join(room, guide.replace(/\.md$/, ".mts"));
  writeFileSync(file, code);
  return file;
}

function run(guide: string): string {
  const { status, stdout, stderr } = spawnSync(process.execPath, ["--import", "tsx", codeFile(guide)], {
    cwd: room,
    encoding: "utf8",
    env: { ...process.env, NABLA_DEVICE: nativeDevice() },
  });
  assert.equal(status, 0, stderr);
  return stdout;
}

const sentence = (i: number) => `The owl number ${i} sang in the deep forest.`;
const sentences = (count: number, from: number) =>
  Array.from({ length: count }, (_, i) => JSON.stringify({ text: sentence(from + i) }));

cpSync(join(root, "tests/parity/fixtures/generation/tiny-chat"), join(room, "path/or/org/name"), { recursive: true });
writeFileSync(join(room, "train.jsonl"), `${sentences(24, 0).join("\n")}\n`);
writeFileSync(join(room, "test.jsonl"), `${sentences(6, 50).join("\n")}\n`);
const reviews = Array.from({ length: 40 }, (_, i) =>
  i % 2 === 0 ? `the owl sang ${i},good` : `it fell down ${i},bad`,
);
writeFileSync(join(room, "reviews.csv"), `text,label\n${reviews.join("\n")}\n`);

test("the guides on pretrained models have the right types", () => {
  const include = ["guide-generate.md", "guide-finetune.md"].map(codeFile);
  const config = {
    extends: join(root, "tsconfig.json"),
    include: [...include, join(root, "src/core/build.ts")],
    exclude: [],
  };
  writeFileSync(join(room, "tsconfig.json"), JSON.stringify(config));
  const tsc = join(root, "node_modules", "typescript", "bin", "tsc");
  const { status, stdout } = spawnSync(process.execPath, [tsc, "-p", room], { cwd: root, encoding: "utf8" });
  assert.equal(status, 0, stdout);
});

test("the guide on generation runs as it stands", () => {
  const stdout = run("guide-generate.md");
  const [, before, after] = /^loss ([\d.]+) → ([\d.]+)$/m.exec(stdout) ?? [];
  assert.ok(Number(after) < Number(before) - 0.3, stdout);
  assert.match(stdout, /^(stop|length) \d+ tokens$/m);
  assert.match(stdout, /^The fox 🦊 1$/m);
  const config = JSON.parse(readFileSync(join(room, "runs/ft/adapter_config.json"), "utf8"));
  assert.equal(config.base_model_name_or_path, "path/or/org/name");
  assert.ok(existsSync(join(room, "runs/ft/adapter_model.safetensors")));
});

test("the guide on fine-tuning runs as it stands", () => {
  const stdout = run("guide-finetune.md");
  const [, before, after] = /^loss +([\d.]+) +→ +([\d.]+)/m.exec(stdout) ?? [];
  assert.ok(Number(after) < Number(before) - 2, stdout);
  const [, thin] = /^rank 2 against rank 16: ([\d.]+) nats/m.exec(stdout) ?? [];
  assert.ok(Number(thin) > 0, stdout);
  assert.match(stdout, /^1 " the deep forest/m); // learnt by heart
  const classifier = JSON.parse(readFileSync(join(room, "runs/classifier/config.json"), "utf8"));
  assert.deepEqual(classifier.id2label, { 0: "bad", 1: "good" });
  assert.ok(existsSync(join(room, "runs/merged/model.safetensors")));
  assert.ok(existsSync(join(room, "runs/lora/evaluation.json")));
});
