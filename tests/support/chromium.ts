/** A page in a headless Chromium: serves files, opens them, and gives what the page's program answers. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** The browser to test with: NABLA_CHROMIUM, else what is installed under a usual name; null where there is none. */
export const chromium: string | null =
  [process.env["NABLA_CHROMIUM"], "chromium", "chromium-browser", "google-chrome"].find(
    (name) => name && spawnSync(name, ["--version"], { stdio: "ignore" }).status === 0,
  ) ?? null;

export interface Page {
  /** The text of a file by its path, "/nabla/index.js"; null where there is none. */
  readonly file: (path: string) => string | Uint8Array | null;
  /** The page's module. What it passes to `answer` is what `openPage` gives. */
  readonly program: string;
  /** Whether the page is isolated from other origins, so that threads share memory. */
  readonly isolated: boolean;
}

const isolation = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
} as const;

const html = (program: string): string => `<!doctype html><script type="module">
const answer = (value) => fetch("/answer", { method: "POST", body: JSON.stringify({ value }) });
const fail = (error) => fetch("/answer", { method: "POST", body: JSON.stringify({ error: String(error?.stack ?? error) }) });
addEventListener("unhandledrejection", ({ reason }) => fail(reason));
addEventListener("error", ({ message }) => fail(message));
${program}
</script>`;

function serve({ file, program, isolated }: Page, take: (answer: string) => void): Server {
  return createServer((request, response) => {
    const path = request.url ?? "/";
    if (path === "/answer") {
      let body = "";
      request.setEncoding("utf8");
      request.on("data", (part) => {
        body += part;
      });
      request.on("end", () => {
        response.end();
        take(body);
      });
      return;
    }
    const content = path === "/" ? html(program) : file(path);
    response.writeHead(content === null ? 404 : 200, {
      ...(isolated ? isolation : {}),
      "Content-Type": path === "/" ? "text/html; charset=utf-8" : "text/javascript",
    });
    response.end(content ?? "");
  });
}

function start(url: string, profile: string): ChildProcess {
  const options = ["--headless=new", "--no-sandbox", "--no-first-run", `--user-data-dir=${profile}`];
  // WebGPU on a driver that needs no GPU
  const gpu = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"];
  return spawn(chromium as string, [...options, ...gpu, url], { stdio: "ignore", detached: true });
}

/** Opens the page and gives its answer. Rejects with the page's error, and where none came within 3 minutes. */
export async function openPage<T>(page: Page): Promise<T> {
  const profile = mkdtempSync(join(tmpdir(), "nabla-chromium-"));
  let browser: ChildProcess | null = null;
  let server: Server | null = null;
  try {
    const body = await new Promise<string>((resolve, reject) => {
      setTimeout(() => reject(new Error("the page gave no answer within 3 minutes")), 180_000).unref();
      server = serve(page, resolve);
      server.listen(0, "127.0.0.1", () => {
        browser = start(`http://127.0.0.1:${((server as Server).address() as AddressInfo).port}/`, profile);
        browser.on("error", reject);
        browser.on("exit", (code) => reject(new Error(`the browser ended with code ${code}`)));
      });
    });
    const { value, error } = JSON.parse(body) as { value: T; error?: string };
    if (error !== undefined) throw new Error(`the page failed: ${error}`);
    return value;
  } finally {
    await end(browser);
    (server as Server | null)?.close();
    (server as Server | null)?.closeAllConnections();
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** Ends the browser with all its processes, which are a group of their own. */
async function end(browser: ChildProcess | null): Promise<void> {
  if (!browser?.pid || browser.exitCode !== null) return;
  const ended = new Promise((resolve) => browser.once("exit", resolve));
  process.kill(-browser.pid);
  await ended;
}
