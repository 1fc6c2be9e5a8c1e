/**
 * The page recipes/draw-digits as its user meets it: built by Vite over a package that was built for it, in headless Chromium.
 * It trains, pauses, goes on after a reload, reads what is drawn; by mouse and by keyboard, wide and narrow, light and dark.
 */
import assert from "node:assert/strict";
import { cpSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import type { Server } from "node:http";
import { join } from "node:path";
import { after, before, describe, type TestContext, test } from "node:test";
import type { Browser, BrowserContext, Page } from "playwright-core";
import { buildBrowser } from "../../scripts/browser.mjs";
import { root } from "../support/build.ts";
import { chromiumPath, launchChromium, serveFolder } from "../support/chromium.ts";

const skip = chromiumPath() === null && "there is no Chromium here";
const long =
  process.env["NABLA_LONG"] === "1"
    ? false
    : "NABLA_LONG=1 does the same on an adapter in software, which takes a minute";
const patience = 300_000;

type Point = readonly [x: number, y: number];
/** Digits as a hand draws them, on a sheet of 280 × 280. */
const strokes: Readonly<Record<number, readonly (readonly Point[])[]>> = {
  0: [
    [
      [150, 40],
      [100, 60],
      [80, 140],
      [100, 220],
      [150, 240],
      [200, 220],
      [215, 140],
      [195, 60],
      [150, 40],
    ],
  ],
  1: [
    [
      [140, 40],
      [140, 240],
    ],
  ],
  7: [
    [
      [80, 50],
      [210, 50],
      [130, 240],
    ],
  ],
};

/** In the repository, so that Vite and the digits are found where they are installed. */
let room: string;
let server: Server;
let address: string;
/** The files of src that each script of the page was made of. */
const sources = new Map<string, string[]>();

interface Chunk {
  readonly type: string;
  readonly fileName: string;
  readonly moduleIds: readonly string[];
}

before(async () => {
  if (skip) return;
  room = mkdtempSync(join(root, "tests", ".draw-digits-"));
  const page = join(root, "recipes", "draw-digits");
  for (const name of ["index.html", "vite.config.ts", "package.json", "src"])
    cpSync(join(page, name), join(room, name), { recursive: true });
  // the package as a bundler finds it: by the conditions of its package.json
  const installed = join(room, "node_modules", "nabla");
  mkdirSync(installed, { recursive: true });
  cpSync(join(root, "package.json"), join(installed, "package.json"));
  const { outputs } = await buildBrowser(join(installed, "dist", "browser"), { softwareAdapters: true });
  const { build } = await import("vite");
  const { output } = (await build({ root: room, logLevel: "error" })) as { output: readonly Chunk[] };
  for (const { type, fileName, moduleIds } of output)
    if (type === "chunk")
      sources.set(
        fileName,
        moduleIds.flatMap((id) =>
          Object.entries(outputs).flatMap(([file, { inputs }]) => (join(root, file) === id ? Object.keys(inputs) : [])),
        ),
      );
  ({ server, address } = await serveFolder(join(room, "dist")));
});
after(() => {
  if (skip) return;
  server?.close();
  rmSync(room, { recursive: true, force: true });
});

const text = async (page: Page, id: string): Promise<string> => (await page.locator(`#${id}`).textContent()) ?? "";
const number = async (page: Page, id: string): Promise<number> =>
  Number.parseFloat((await text(page, id)).replace(",", ""));

/** A page that notes the tasks that held it up, and its workers. */
async function openPage(context: BrowserContext): Promise<Page> {
  const page = await context.newPage();
  page.on("pageerror", (error) => assert.fail(`the page threw ${error.stack}`));
  await page.addInitScript(`
    globalThis.longTasks = [];
    new PerformanceObserver((list) => longTasks.push(...list.getEntries().map(({ duration }) => duration)))
      .observe({ type: "longtask" });
    globalThis.workers = [];
    globalThis.Worker = class extends Worker {
      constructor(...how) {
        super(...how);
        workers.push({ worker: this, name: how[1].name });
      }
    };
  `);
  await page.goto(address);
  return page;
}

const isReady = (page: Page): Promise<unknown> =>
  page.waitForFunction(`!document.getElementById("train").disabled`, undefined, { timeout: patience });
const reaches = (page: Page, condition: string): Promise<unknown> =>
  page.waitForFunction(
    `(() => { const read = (id) => Number.parseFloat(document.getElementById(id).textContent.replace(",", ""));
      if (!document.getElementById("failure").hidden) throw new Error(document.getElementById("failure-text").textContent);
      return ${condition}; })()`,
    undefined,
    { timeout: patience },
  );

async function pause(page: Page): Promise<void> {
  await page.click("#train");
  await page.waitForFunction(`document.getElementById("status").textContent.startsWith("Paused")`, undefined, {
    timeout: patience,
  });
}

async function draw(page: Page, digit: number): Promise<void> {
  await page.click("#clear");
  const box = await page.locator("#sheet").boundingBox();
  assert.ok(box);
  const move = ([x, y]: Point, steps: number): Promise<void> =>
    page.mouse.move(box.x + (x / 280) * box.width, box.y + (y / 280) * box.height, { steps });
  for (const [first, ...rest] of strokes[digit]) {
    await move(first, 1);
    await page.mouse.down();
    for (const point of rest) await move(point, 5);
    await page.mouse.up();
  }
}

/** Waits until the page says that it reads `digit`. */
const isRead = (page: Page, digit: number): Promise<unknown> =>
  page.waitForFunction(`document.getElementById("answer").textContent.includes("a ${digit}")`, undefined, {
    timeout: 60_000,
  });

async function startsAndTrains(page: Page): Promise<void> {
  await isReady(page);
  assert.equal(await text(page, "steps"), "0");
  await page.evaluate("longTasks.length = 0");
  await page.click("#train");
  await reaches(page, `read("accuracy") >= 95`);
  await pause(page);
}

/** The last evaluation: at which step, and the whole confusion matrix as text. */
interface Evaluation {
  readonly step: number;
  readonly matrix: string;
}

/** Waits until the page shows an evaluation of step `first` or later. */
async function evaluationFrom(page: Page, first: number): Promise<Evaluation> {
  const found = await page.waitForFunction(
    `(() => { const step = Number(/at step (\\d+)$/.exec(document.getElementById("accuracy-chart").ariaLabel)?.[1]);
      return step >= ${first} && { step, matrix: document.getElementById("matrix").innerText }; })()`,
    undefined,
    { timeout: patience },
  );
  return (await found.jsonValue()) as Evaluation;
}

/** Gives the first evaluation after the reload. */
async function goesOnAfterReload(page: Page): Promise<Evaluation> {
  const [steps, accuracy] = [await number(page, "steps"), await number(page, "accuracy")];
  await page.reload();
  await isReady(page);
  assert.equal(
    await text(page, "train"),
    `Continue from step ${steps.toLocaleString("en")} (${accuracy.toFixed(1)} %)`,
  );
  assert.equal(await number(page, "steps"), steps);
  await page.click("#train");
  const evaluation = await evaluationFrom(page, steps + 1);
  await pause(page);
  assert.ok((await number(page, "accuracy")) > accuracy - 2, `${accuracy} % fell to ${await text(page, "accuracy")}`);
  return evaluation;
}

/** The page's own scripts hold nothing that compiles or computes, and nothing has held the page up. */
async function leftToItsUser(page: Page): Promise<void> {
  const loaded = (await page.evaluate(
    `performance.getEntriesByType("resource").filter((r) => r.initiatorType !== "other").map((r) => new URL(r.name).pathname.slice(1))`,
  )) as string[];
  const heavy = /^src\/(compiler|backends\/(cpu|wasm|webgpu))\//;
  const own = loaded.flatMap((file) => sources.get(file) ?? []);
  assert.ok(own.includes("src/backends/remote/client.ts"), `scripts of the page: ${loaded.join(", ")}`);
  assert.deepEqual(
    own.filter((file) => heavy.test(file)),
    [],
  );
  assert.ok(
    [...sources.values()].flat().some((file) => heavy.test(file)),
    "the build has the compiler for the worker",
  );
}

async function withBrowser(webgpu: boolean, work: (context: BrowserContext) => Promise<void>): Promise<void> {
  const browser: Browser = await launchChromium({ webgpu });
  try {
    await work(await browser.newContext({ viewport: { width: 1280, height: 900 } }));
  } finally {
    await browser.close();
  }
}

describe("draw-digits", { skip }, () => {
  test("without WebGPU it trains on WebAssembly to 95 %, goes on after a reload, and reads what is drawn", (t: TestContext) =>
    withBrowser(false, async (context) => {
      const page = await openPage(context);
      await t.test("says why there is no WebGPU, and trains", async () => {
        await isReady(page);
        assert.match(await text(page, "absent"), /^No WebGPU: /);
        assert.match(await text(page, "device"), /WebAssembly \(\d+ threads?\)/);
        await startsAndTrains(page);
        const longest = Math.max(0, ...((await page.evaluate("longTasks")) as number[]));
        assert.ok(longest <= 200, `the page did not answer for ${longest} ms`);
        await leftToItsUser(page);
      });
      let resumed: Evaluation;
      await t.test("goes on after a reload", async () => {
        resumed = await goesOnAfterReload(page);
      });
      for (const digit of [0, 1, 7])
        await t.test(`reads a ${digit}`, async () => {
          await draw(page, digit);
          await isRead(page, digit);
        });
      await t.test("is used by keyboard", () => byKeyboard(page));
      await t.test("fits a phone, and is legible in light and dark", () => isLegible(page));
      await t.test("starts anew when asked, and comes to where it came with the reload between", async () => {
        const steps = await number(page, "steps");
        await page.click("#anew");
        await reaches(page, `read("steps") > 0 && read("steps") < ${steps}`);
        assert.deepEqual(await evaluationFrom(page, resumed.step), resumed);
        await pause(page);
      });
      await t.test("saves itself when it is left in the middle of training", () => isLeft(page));
      await t.test("says that its device is lost, and goes on from what was saved", () => outlivesItsDevice(page));
    }));

  test("on WebGPU it does the same", { skip: long }, (t: TestContext) =>
    withBrowser(true, async (context) => {
      const page = await openPage(context);
      await t.test("trains", async () => {
        await isReady(page);
        assert.equal(await page.locator("#device").inputValue(), "webgpu");
        await startsAndTrains(page);
        await leftToItsUser(page);
      });
      await t.test("goes on after a reload", async () => {
        await goesOnAfterReload(page);
      });
      await t.test("reads a 7", async () => {
        await draw(page, 7);
        await isRead(page, 7);
      });
      await t.test("goes on in WebAssembly when it is lost", async () => {
        await page.click("#train");
        const saved = await losesItsDevice(page);
        await page.selectOption("#device", "wasm");
        await page.waitForFunction(`document.getElementById("failure").hidden`);
        assert.equal(await number(page, "steps"), saved);
        await page.click("#train");
        await reaches(page, `read("steps") > ${saved}`);
        await pause(page);
        await draw(page, 0);
        await isRead(page, 0);
      });
    }),
  );

  test("without a connection it says so, and tries again when asked", () =>
    withBrowser(false, async (context) => {
      await context.route("**/digits/**", (route) => route.abort());
      const page = await openPage(context);
      await page.locator("#failure").waitFor();
      assert.match(await text(page, "failure-text"), /digits could not be loaded/);
      assert.match(await text(page, "failure-detail"), /can't fetch .*digits.*gz/);
      await context.unroute("**/digits/**");
      await page.click("#mend");
      await isReady(page);
      assert.ok(!(await page.locator("#failure").isVisible()));
    }));
});

/** Every control is reached by Tab and shows it, and the keyboard draws. */
async function byKeyboard(page: Page): Promise<void> {
  await page.click("#clear");
  const controls = (await page.evaluate(
    `[...document.querySelectorAll("button, select, input, a, [tabindex]")].filter((e) => !e.disabled && e.checkVisibility()).map((e) => e.id)`,
  )) as string[];
  assert.deepEqual([...controls].sort(), ["anew", "clear", "device", "sheet", "train"]);
  await page.evaluate("document.activeElement.blur()");
  const reached = new Set<string>();
  for (let i = 0; i < 2 * controls.length; i++) {
    await page.keyboard.press("Tab");
    const [id, outline] = (await page.evaluate(
      `(({ activeElement: e }) => [e.id, getComputedStyle(e).outlineStyle])(document)`,
    )) as [string, string];
    if (!controls.includes(id)) continue;
    assert.notEqual(outline, "none", `${id} does not show its focus`);
    reached.add(id);
  }
  assert.deepEqual([...reached].sort(), [...controls].sort());
  while ((await page.evaluate("document.activeElement.id")) !== "sheet") await page.keyboard.press("Tab");
  await page.keyboard.press("Space");
  for (let i = 0; i < 15; i++) await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Space");
  await isRead(page, 1);
  await page.keyboard.press("Delete");
  await page.waitForFunction(`!document.querySelector(".bars .best")`);
}

/** In the page: texts whose contrast with what is behind them is below 4.5, WCAG 2's level AA. */
const faint = `(() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const luminance = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    const linear = (x) => (x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4);
    return a === 0 ? null : 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  };
  const behind = (e) => luminance(getComputedStyle(e).backgroundColor) ?? behind(e.parentElement);
  const written = [...document.querySelectorAll("body *")].filter((e) =>
    e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.textContent.trim()));
  return written.flatMap((e) => {
    const style = getComputedStyle(e);
    const [a, b] = [luminance(e instanceof SVGElement ? style.fill : style.color), behind(e)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    return ratio < 4.5 ? [e.tagName + " " + e.textContent.slice(0, 20) + ": " + ratio.toFixed(2)] : [];
  });
})()`;

async function isLegible(page: Page): Promise<void> {
  await draw(page, 7);
  await isRead(page, 7);
  for (const width of [390, 320, 1280])
    for (const colorScheme of ["light", "dark"] as const) {
      await page.setViewportSize({ width, height: 844 });
      await page.emulateMedia({ colorScheme });
      const wide = await page.evaluate("document.documentElement.scrollWidth");
      assert.ok((wide as number) <= width, `at ${width} pixels the page is ${wide} wide`);
      assert.deepEqual(await page.evaluate(faint), [], `${colorScheme}, ${width} pixels`);
    }
}

async function isLeft(page: Page): Promise<void> {
  const steps = await number(page, "steps");
  await page.click("#train");
  await reaches(page, `read("steps") > ${steps + 30}`); // it has saved itself at the start
  const left = await number(page, "steps");
  await page.evaluate(`dispatchEvent(new Event("pagehide"))`);
  await reaches(page, `read("steps") > ${left + 10}`);
  await page.waitForTimeout(1000); // a step may take a millisecond, and a checkpoint many
  await page.reload();
  await isReady(page);
  assert.ok((await number(page, "steps")) >= left, `left at step ${left}: ${await text(page, "train")}`);
}

/** Takes the worker away from a page that trains; gives the step that the page says is saved. */
async function losesItsDevice(page: Page): Promise<number> {
  const steps = await number(page, "steps");
  await reaches(page, `read("steps") > ${steps + 5}`);
  await page.evaluate(`workers.filter(({ name }) => name === "nabla").forEach(({ worker }) =>
    worker.dispatchEvent(new ErrorEvent("error", { message: "out of memory", cancelable: true })))`);
  await page.locator("#failure").waitFor({ timeout: patience });
  assert.match(await text(page, "failure-text"), /up to step \d+ is saved: reload the page/);
  assert.match(await text(page, "failure-detail"), /out of memory/);
  assert.ok(await page.locator("#train").isDisabled());
  const saved = Number(/up to step (\d+)/.exec(await text(page, "failure-text"))?.[1]);
  assert.ok(saved >= steps);
  return saved;
}

async function outlivesItsDevice(page: Page): Promise<void> {
  await page.click("#train");
  const saved = await losesItsDevice(page);
  await page.click("#mend");
  await isReady(page);
  assert.equal(await number(page, "steps"), saved);
  await page.click("#train");
  await reaches(page, `read("steps") > ${saved}`);
  await pause(page);
}
