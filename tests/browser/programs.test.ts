/**
 * The browser's build computes what the library computes: trainings on the wasm backend of both, bit for bit, with the
 * same names of parameters and states. Both run here in Node.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { pathToFileURL } from "node:url";
import { buildBrowser } from "../../scripts/browser.mjs";
import { generate } from "../../src/generate/index.ts";
import * as source from "../../src/index.ts";
import * as models from "../../src/models/index.ts";
import { type Library, programs } from "./programs.ts";

const room = mkdtempSync(join(tmpdir(), "nabla-browser-"));
let built: Library;

before(async () => {
  await buildBrowser(room);
  const load = (name: string) => import(pathToFileURL(join(room, `${name}.js`)).href);
  const [index, models, { generate }] = await Promise.all([load("index"), load("models"), load("generate")]);
  built = { ...index, models, generate };
});
after(() => rmSync(room, { recursive: true, force: true }));

test("a browser's devices are wasm, on which new tensors live, and webgpu", () => {
  assert.deepEqual(built.deviceNames(), ["wasm", "webgpu"]);
  assert.equal(built.tensor([1]).device, "wasm");
});

for (const [name, program] of Object.entries(programs))
  test(`the library and the browser's build train the same: ${name}`, async () => {
    source.setDevice("wasm");
    source.manualSeed(7);
    const expected = await program({ ...source, models, generate });
    built.manualSeed(7);
    assert.deepEqual(await program(built), expected);
    assert.ok(expected.losses.every(Number.isFinite) && new Set(expected.losses).size > 3, `${expected.losses}`);
    assert.ok(expected.keys.length > 4, `${expected.keys}`);
  });

test("everything that a subpath exports is there, and classes keep their names", () => {
  const pairs: [string, object, object][] = [
    ["nabla", source, built],
    ["nabla/nn", source.nn, built.nn],
    ["nn.functional", source.nn.functional, built.nn.functional],
    ["nn.init", source.nn.init, built.nn.init],
    ["nabla/optim", source.optim, built.optim],
    ["nabla/models", models, built.models],
  ];
  const isClass = (value: unknown): value is { readonly name: string } =>
    typeof value === "function" && /^class\b/.test(Function.prototype.toString.call(value));
  for (const [path, ours, theirs] of pairs) {
    const names = Object.keys(ours).sort();
    const added = theirs === built ? ["generate", "models"] : [];
    assert.deepEqual(
      Object.keys(theirs)
        .filter((name) => !added.includes(name))
        .sort(),
      names,
      path,
    );
    if (path === "nabla") continue; // errors have their names as a property, which the next test reads
    for (const [name, value] of Object.entries(theirs)) if (isClass(value)) assert.equal(value.name, name);
  }
});

test("errors say the same", async () => {
  const wrong: readonly ((library: Library) => unknown)[] = [
    ({ tensor }) => tensor([1, 2]).add(tensor([1, 2, 3])),
    ({ nn, randn }) => new nn.Linear(3, 4).forward(randn([2, 5])),
    ({ nn, randn }) => new nn.BatchNorm2d(3).forward(randn([2, 3])),
    ({ optim }) => new optim.AdamW([], { lr: 1 }),
    ({ nn }) => new nn.Linear(3, 4).loadStateDict({}),
    ({ tensor }) => tensor([1]).backward(),
    ({ tensor }) =>
      tensor([1, 2, 3])
        .indexSelect(0, tensor([3], { dtype: "int32" }))
        .data(),
  ];
  const told = async (library: Library, run: (library: Library) => unknown): Promise<string> => {
    try {
      await run(library);
    } catch (error) {
      return String(error).replace(/%\d+/g, "%n"); // nodes are numbered in the order in which they were made
    }
    return assert.fail(`${run} does not fail`);
  };
  for (const run of wrong)
    assert.equal(await told(built, run), await told({ ...source, models, generate }, run), String(run));
});
