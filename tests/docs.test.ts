/** The documents are true: the tutorial runs as it stands, links lead somewhere, the commands that are shown exist. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const read = (path: string): string => readFileSync(join(root, path), "utf8");
const documents = [
  ...readdirSync(root).filter((name) => name.endsWith(".md")),
  ...readdirSync(join(root, "docs")).map((name) => `docs/${name}`),
  ...readdirSync(join(root, "recipes"), { recursive: true }).map(
    (name) => `recipes/${String(name).replaceAll("\\", "/")}`,
  ),
].filter((path) => path.endsWith(".md"));

test("the tutorial runs as it stands, and says what it says it says", () => {
  const blocks = [...read("docs/tutorial.md").matchAll(/```ts\n([\s\S]*?)```/g)].map((match) => match[1]);
  assert.ok(blocks.length >= 8);
  const exports = JSON.parse(read("package.json")).exports as Record<string, { default: string }>;
  // The package by its sources, so that the test needs no build.
  const source = blocks.join("\n").replace(/from "nabla(\/\w+)?"/g, (_, path?: string) => {
    const entry = exports[path === undefined ? "." : `.${path}`];
    assert.ok(entry, `the package exports no nabla${path}`);
    return `from ${JSON.stringify(join(root, entry.default.replace("./dist/", "src/").replace(/\.js$/, ".ts")))}`;
  });
  const room = mkdtempSync(join(root, "tests", ".tutorial-"));
  try {
    const file = join(room, "lesson.mts");
    writeFileSync(file, source);
    const { status, stdout, stderr } = spawnSync(process.execPath, ["--import", "tsx", file], {
      cwd: root,
      encoding: "utf8",
      env: { ...process.env, NABLA_DEVICE: "reference", TMPDIR: room, TEMP: room },
    });
    assert.equal(status, 0, stderr);
    assert.match(stdout, /ShapeError: matmul: inner sizes differ/);
    assert.match(stdout, /\[ 12, 16 \]/);
    const accuracy = Number(/^accuracy ([\d.]+)$/m.exec(stdout)?.[1]);
    assert.ok(accuracy > 0.97, stdout);
    assert.match(stdout, /fc1\.weight/);
    assert.match(stdout, /^(finished|stopped) \d+ \{/m);
    assert.match(stdout, /\[ 301, 2 \]/);
  } finally {
    rmSync(room, { recursive: true, force: true });
  }
});

test("links between documents lead to files that are there", () => {
  const broken: string[] = [];
  for (const path of documents)
    for (const [, target] of read(path).matchAll(/\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)/g))
      if (!existsSync(join(root, dirname(path), target))) broken.push(`${path}: ${target}`);
  assert.deepEqual(broken, []);
});

test("every command and flag that the documents show exists", () => {
  const sources = readdirSync(join(root, "src", "cli"))
    .map((name) => read(`src/cli/${name}`))
    .join("\n");
  const commands = new Set([...sources.matchAll(/\.command\("(\w+)"\)/g)].map((match) => match[1]));
  const flags = new Set([...sources.matchAll(/"(--[a-z][\w-]*)/g)].map((match) => match[1]));
  const missing: string[] = [];
  for (const path of ["README.md", "README.zh.md", "docs/guide-cli.md"])
    for (const [line] of read(path).matchAll(/^npx nabla .*$/gm)) {
      const command = line.split(/\s+/)[2];
      if (!commands.has(command)) missing.push(`${path}: ${command}`);
      for (const [flag] of line.replace(/ # .*$/, "").matchAll(/--[a-z][\w-]*/g))
        if (!flags.has(flag)) missing.push(`${path}: ${flag}`);
    }
  assert.deepEqual(missing, []);
});

test("a document and its Chinese version show the same commands and code", () => {
  const code = (path: string): string[] =>
    [...read(path).matchAll(/```\w+\n([\s\S]*?)```/g)].map((match) =>
      match[1]
        .replace(/(^|\s)(#|\/\/) .*$/gm, "")
        .replace(/"(.*?)"/g, '""')
        .replace(/[ \t]+$/gm, ""),
    );
  const translated = documents.filter((path) => path.endsWith(".zh.md"));
  assert.ok(translated.length >= 6);
  for (const path of translated) assert.deepEqual(code(path), code(path.replace(".zh.md", ".md")), path);
});
