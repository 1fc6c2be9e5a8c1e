/**
 * The browser's build on a page: what Node's wasm backend trains, a page trains, which records while a worker computes,
 * with threads and without, and on WebGPU.
 */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { buildBrowser } from "../../scripts/browser.mjs";
import { generate } from "../../src/generate/index.ts";
import * as source from "../../src/index.ts";
import * as models from "../../src/models/index.ts";
import { chromiumPath, launchChromium, serveFolder } from "../support/chromium.ts";
import { programs, type Trained } from "./programs.ts";

const room = mkdtempSync(join(tmpdir(), "nabla-page-"));
const skip = chromiumPath() === null && "there is no Chromium here";

before(async () => {
  if (skip) return;
  await buildBrowser(room);
  const entry = fileURLToPath(new URL("./programs.ts", import.meta.url));
  await build({ entryPoints: [entry], outfile: join(room, "programs.js"), format: "esm", target: "es2022" });
});
after(() => rmSync(room, { recursive: true, force: true }));

/** Runs programs by name in a page. */
async function inPage(
  device: string,
  names: readonly string[],
  isolated: boolean,
): Promise<{ isolated: boolean; trained: Trained[] }> {
  const { server, address } = await serveFolder(room, { isolated });
  const browser = await launchChromium();
  try {
    const page = await browser.newPage();
    await page.goto(address);
    return await page.evaluate(
      `(async (device, names) => {
        const [nabla, models, { generate }, { programs }] = await Promise.all(
          ["index", "models", "generate", "programs"].map((name) => import("/" + name + ".js")));
        const library = { ...nabla, models, generate };
        nabla.setDevice(device);
        const trained = [];
        for (const name of names) {
          nabla.manualSeed(7);
          trained.push(await programs[name](library));
        }
        return { isolated: crossOriginIsolated, trained };
      })(${JSON.stringify(device)}, ${JSON.stringify(names)})`,
    );
  } finally {
    await browser.close();
    server.close();
  }
}

async function inNode(names: readonly string[]): Promise<Trained[]> {
  source.setDevice("wasm");
  const trained: Trained[] = [];
  for (const name of names) {
    source.manualSeed(7);
    trained.push(await programs[name]({ ...source, models, generate }));
  }
  return trained;
}

const names = Object.keys(programs);

for (const isolated of [true, false])
  test(`a page ${isolated ? "with threads" : "without shared memory"} trains on wasm what Node does, bit for bit`, {
    skip,
  }, async () => {
    const page = await inPage("wasm", names, isolated);
    assert.equal(page.isolated, isolated);
    assert.deepEqual(page.trained, await inNode(names));
  });

test("a page trains on WebGPU what Node trains on wasm, up to rounding", { skip }, async (t) => {
  const some = names.slice(0, 1);
  let page: { trained: Trained[] };
  try {
    page = await inPage("webgpu", some, false);
  } catch (error) {
    if (!/no WebGPU adapter|has no WebGPU/.test(String(error))) throw error;
    return t.skip("no WebGPU adapter in this browser");
  }
  const [there, here] = [page.trained[0], (await inNode(some))[0]];
  assert.deepEqual(there.keys, here.keys);
  for (const [i, loss] of here.losses.entries())
    assert.ok(Math.abs(there.losses[i] - loss) < 1e-4, `${there.losses} ${here.losses}`);
});

test("the guide's program runs on a page", { skip }, async () => {
  const guide = readFileSync(new URL("../../docs/guide-browser.md", import.meta.url), "utf8");
  const [, program] = /```ts\n([\s\S]*?)```/.exec(guide) as RegExpExecArray;
  const content = program.replaceAll('"nabla"', '"/index.js"').replace('setDevice("webgpu")', 'setDevice("wasm")');
  const { server, address } = await serveFolder(room);
  const browser = await launchChromium();
  try {
    const page = await browser.newPage();
    await page.goto(address);
    const said = page.waitForEvent("console");
    const failed = page.waitForEvent("pageerror").then((error) => Promise.reject(error));
    await page.addScriptTag({ type: "module", content });
    const [device, values] = await Promise.all(
      (await Promise.race([said, failed])).args().map((arg) => arg.jsonValue()),
    );
    assert.equal(device, "wasm");
    const wrong = (values as number[][]).filter(([y], i) => Math.abs(y - [0, 1, 1, 0][i]) > 0.3);
    assert.deepEqual(wrong, [], JSON.stringify(values));
  } finally {
    await browser.close();
    server.close();
  }
});
