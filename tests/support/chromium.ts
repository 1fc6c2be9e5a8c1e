/**
 * Backends in headless Chromium: the worker of the browser build runs in a page there, and the tests of this process
 * speak to it as the library on a page would, over playwright's connection. So one body of tests runs there too.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join, normalize } from "node:path";
import { after } from "node:test";
import { type Browser, chromium, type Page } from "playwright-core";
import { buildBrowser } from "../../scripts/browser.mjs";
import type { Backend } from "../../src/backends/backend.ts";
import { openRemoteBackend, type Port } from "../../src/backends/remote/client.ts";
import type { Answer, Request } from "../../src/backends/remote/wire.ts";
import { decodeMessage, encodeMessage } from "./messages.ts";

const places = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

/** Where Chromium is: NABLA_CHROMIUM, or where distributions put it; null where it is not. */
export const chromiumPath = (): string | null =>
  process.env["NABLA_CHROMIUM"] ?? places.find((path) => existsSync(path)) ?? null;

/** Headless Chromium, with WebGPU on whatever adapter it finds (SwiftShader where there is none), or without. */
export function launchChromium({ webgpu = true } = {}): Promise<Browser> {
  const executablePath = chromiumPath();
  if (!executablePath) throw new Error("there is no Chromium here; NABLA_CHROMIUM may name one");
  const gpu = ["--enable-unsafe-webgpu", "--enable-features=Vulkan", "--use-webgpu-adapter=swiftshader"];
  return chromium.launch({
    executablePath,
    args: ["--no-sandbox", "--disable-dev-shm-usage", ...(webgpu ? gpu : ["--disable-features=WebGPU"])],
  });
}

const types: Readonly<Record<string, string>> = {
  js: "text/javascript",
  html: "text/html",
  css: "text/css",
  wasm: "application/wasm",
};

/** Serves a folder on the loopback interface, cross-origin isolated or not; "/" without index.html is an empty page. */
export async function serveFolder(
  folder: string,
  { isolated = true } = {},
): Promise<{ server: Server; address: string }> {
  const server = createServer(({ url = "/" }, response) => {
    const path = normalize(new URL(url, "http://localhost").pathname);
    const file = join(folder, path === "/" ? "index.html" : path);
    if (isolated) {
      response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
      response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
    }
    response.setHeader("Content-Type", types[file.split(".").at(-1) as string] ?? "application/octet-stream");
    if (existsSync(file)) response.end(readFileSync(file));
    else if (path === "/") response.end(`<!doctype html><link rel="icon" href="data:,"><title>an empty page</title>`);
    else response.writeHead(404).end();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { server, address: `http://127.0.0.1:${(server.address() as AddressInfo).port}/` };
}

/** Sends what has come together since the last time, in order. */
class PagePort implements Port {
  readonly #page: Page;
  #queue: string[] = [];
  #answer: (answer: Answer) => void = () => {};
  #lost: (reason: string) => void = () => {};

  constructor(page: Page) {
    this.#page = page;
    page.on("close", () => this.#lost("the page was closed"));
    page.on("crash", () => this.#lost("the page crashed"));
  }

  send(request: Request): void {
    this.#queue.push(encodeMessage(request));
    if (this.#queue.length === 1) setImmediate(() => this.#flush());
  }

  #flush(): void {
    const queue = this.#queue;
    this.#queue = [];
    this.#page
      .evaluate((messages) => (globalThis as unknown as { take(m: string[]): void }).take(messages), queue)
      .catch((error: Error) => this.#lost(error.message));
  }

  listen(answer: (answer: Answer) => void, lost: (reason: string) => void): void {
    this.#answer = answer;
    this.#lost = lost;
  }

  take(text: string): void {
    this.#answer(decodeMessage(text) as Answer);
  }
}

/** In the page: messages to and from a worker of its own. */
const bridge = `
  const encodeMessage = ${encodeMessage}, decodeMessage = ${decodeMessage};
  const worker = new Worker("/worker.js", { type: "module" });
  worker.onmessage = ({ data }) => answer(encodeMessage(data));
  worker.onerror = (event) => console.error("worker: " + event.message);
  globalThis.take = (messages) => { for (const m of messages) worker.postMessage(decodeMessage(m)); };
`;

/** Opens a backend of the browser build in a page, until the tests of this process are over. */
export async function openInChromium(name: string): Promise<Backend> {
  const folder = mkdtempSync(join(tmpdir(), "nabla-browser-"));
  await buildBrowser(folder, { softwareAdapters: true });
  const { server, address } = await serveFolder(folder);
  const browser = await launchChromium();
  const close = async (): Promise<void> => {
    await browser.close();
    server.close();
    rmSync(folder, { recursive: true, force: true });
  };
  after(close);
  try {
    const page = await browser.newPage();
    page.on("console", (message) => console.error(`chromium: ${message.text()}`));
    page.on("pageerror", (error) => console.error(`chromium: ${error.message}`));
    await page.goto(address);
    const port = new PagePort(page);
    await page.exposeFunction("answer", (text: string) => port.take(text));
    await page.addScriptTag({ content: bridge });
    return await openRemoteBackend(port, name);
  } catch (error) {
    await close(); // or this process would never end
    throw error;
  }
}
