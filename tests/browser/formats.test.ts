/** GGUF, PyTorch's and NumPy's files on a page: chosen, by address, and in the origin's private file system. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import type { Server } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import type { Browser, Page } from "playwright-core";
import { buildBrowser } from "../../scripts/browser.mjs";
import { bytesOf, fixture, floatsOf } from "../formats/files.ts";
import { chromiumPath, launchChromium, serveFolder } from "../support/chromium.ts";

const skip = chromiumPath() === null && "no Chromium here (NABLA_CHROMIUM may name one)";
const room = mkdtempSync(join(tmpdir(), "nabla-formats-"));
let server: Server;
let browser: Browser;
let page: Page;

const onPage = <T>(body: string): Promise<T> =>
  page.evaluate(`(async () => { const formats = await import("/formats.js"); ${body} })()`) as Promise<T>;

before(async () => {
  if (skip) return;
  await buildBrowser(room);
  writeFileSync(join(room, "x.gguf"), bytesOf(fixture.gguf[0].file));
  writeFileSync(join(room, "x.pt"), bytesOf(fixture.torch.files["deflated"]));
  writeFileSync(join(room, "x.npz"), bytesOf(fixture.numpy.npz.files["deflated"]));
  const served = await serveFolder(room);
  server = served.server;
  browser = await launchChromium({ webgpu: false });
  page = await browser.newPage();
  await page.addInitScript(`
    globalThis.unpacked = 0;
    const Stream = DecompressionStream;
    globalThis.DecompressionStream = class extends Stream { constructor(format) { unpacked++; super(format); } };
  `);
  await page.goto(served.address);
});
after(async () => {
  await browser?.close();
  server?.close();
  rmSync(room, { recursive: true, force: true });
});

test("a GGUF file is read by address, as a chosen file, and from the private file system", { skip }, async () => {
  const got = await onPage<{ values: number[][]; error: string }>(`
    const url = new URL("x.gguf", location.href);
    const blob = await (await fetch(url)).blob();
    const { metadata, tensors } = await formats.readGguf(url);
    const copy = {};
    for (const [name, { type, shape, read }] of tensors) copy[name] = { type, shape, data: await read() };
    await formats.writeGguf("models/copy.gguf", { metadata, tensors: copy });
    const values = [];
    for (const source of [url, new File([blob], "x.gguf"), "models/copy.gguf"])
      values.push([...await (await formats.readGguf(source)).tensors.get("t.q5_k").float32()]);
    const error = await formats.readGguf("models/none.gguf").catch((e) => e.name + ": " + e.message);
    return { values, error };
  `);
  const expected = [...floatsOf(fixture.gguf[0].tensors["t.q5_k"].float32)];
  assert.deepEqual(got.values, [expected, expected, expected]);
  assert.match(got.error, /^FileError: can't read models\/none\.gguf: there is no such file/);
});

test("deflated archives of PyTorch and NumPy are unpacked, by a worker, and damaged ones are FormatErrors", {
  skip,
}, async () => {
  const got = await onPage<{
    torch: number[];
    npz: number[];
    error: { name: string; offset: number; message: string };
    unpacked: number;
  }>(`
    const url = (name) => new URL(name, location.href);
    const torch = await (await formats.readTorch(url("x.pt"))).tensors.get("transposed").read();
    const npz = await (await formats.readNpz(url("x.npz"))).get("weight").read();
    const bytes = new Uint8Array(await (await fetch("x.npz")).arrayBuffer());
    bytes.fill(255, 60, 200);
    const error = await formats.readNpz(new File([bytes], "bad.npz")).catch(({ name, offset, message }) => ({ name, offset, message }));
    return { torch: [...torch], npz: [...npz], error, unpacked };
  `);
  assert.deepEqual(Uint8Array.from(got.torch), bytesOf(fixture.torch.tensors["transposed"].data));
  assert.deepEqual(Uint8Array.from(got.npz), bytesOf(fixture.numpy.npz.arrays["weight"].data));
  assert.equal(got.unpacked, 0); // on the page
  assert.equal(got.error.name, "FormatError");
  assert.match(got.error.message, new RegExp(`^bad\\.npz: byte ${got.error.offset}: `));
});
