/**
 * The backends that one test body runs on: those present here, narrowed by NABLA_TEST_BACKENDS (comma-separated names).
 * Naming a backend that is not present is an error, so that a narrowed run can't pass by testing nothing.
 */
import { existsSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import type { Backend } from "../../src/backends/backend.ts";
import { referenceBackend } from "../../src/backends/reference/index.ts";

/** Backends in folders of their own: module and the function that opens it. */
const modules = [
  { name: "cpu", path: "../../src/backends/cpu/index.ts", open: "openCpuBackend" },
  { name: "wasm", path: "../../src/backends/wasm/index.ts", open: "openWasmBackend" },
];

/** What opens, or in words why it does not open here: a reason to skip. */
export const orReason = <T>(opening: T | Promise<T>): Promise<T | string> =>
  Promise.resolve(opening).catch((error: Error) => error.message.replace(/^webgpu: /, ""));

/** Opens the WebGPU backend on whatever adapter is here; where there is none, a skipped test says why. */
async function webgpu(): Promise<Backend[]> {
  const module = import("../../src/backends/webgpu/index.ts");
  const opened = await orReason(module.then(({ openWebGpuBackend }) => openWebGpuBackend()));
  if (typeof opened !== "string") return [opened];
  test("on webgpu", { skip: opened }, () => {});
  return [];
}

const chromium = new Map<string, Promise<Backend>>();

/** Opens a backend of the browser build in headless Chromium, once a process, and makes a device of it ("chromium-wasm"). */
function inChromium(name: string): Promise<Backend> {
  let opening = chromium.get(name);
  if (!opening) {
    opening = (async () => {
      const { openInChromium } = await import("./chromium.ts");
      const { registerBackend } = await import("../../src/execution/index.ts");
      const backend = { ...(await openInChromium(name.slice("chromium-".length))), name };
      registerBackend(name, () => backend);
      return backend;
    })();
    chromium.set(name, opening);
  }
  return opening;
}

/**
 * Whether an ordinary run does less on this backend: a software WebGPU adapter compiles slowly, and takes the rest under
 * NABLA_LONG=1.
 */
export const isBrief = ({ name }: Backend): boolean => name.endsWith("webgpu") && process.env["NABLA_LONG"] !== "1";

/** Whether an ordinary run leaves what is near to something else to NABLA_LONG=1: on all but the reference, where kernels are compiled. */
export const leavesAlike = ({ name }: Pick<Backend, "name">): boolean =>
  name !== "reference" && process.env["NABLA_LONG"] !== "1";

/**
 * The floating dtypes in which what is made of operations is compared with PyTorch: float64 and float32 with NABLA_LONG=1; an ordinary run
 * takes float64 where everything is computed in it, and float32 elsewhere.
 */
export const floatsOf = (backend: Pick<Backend, "name" | "dtypes">): readonly ("float64" | "float32")[] =>
  (["float64", "float32"] as const).filter(
    (dtype) =>
      backend.dtypes.includes(dtype) &&
      (process.env["NABLA_LONG"] === "1" || (dtype === "float64") === (backend.name === "reference")),
  );

export async function backendsUnderTest(): Promise<Backend[]> {
  const wanted = process.env["NABLA_TEST_BACKENDS"]?.split(",").filter(Boolean);
  const isWanted = (name: string): boolean => !wanted || wanted.includes(name);
  const backends: Backend[] = [];
  if (isWanted("reference")) backends.push(referenceBackend());
  for (const { name, path, open } of modules) {
    if (!isWanted(name)) continue;
    const url = new URL(path, import.meta.url);
    if (!existsSync(fileURLToPath(url))) continue;
    const module = (await import(url.href)) as Record<string, () => Promise<Backend>>;
    const opened = await orReason(module[open]());
    if (typeof opened !== "string") backends.push(opened);
    else test(`on ${name}`, { skip: opened }, () => {});
  }
  if (isWanted("webgpu")) backends.push(...(await webgpu()));
  for (const name of wanted ?? []) if (name.startsWith("chromium-")) backends.push(await inChromium(name));
  for (const name of wanted ?? [])
    if (!backends.some((backend) => backend.name === name))
      throw new Error(`NABLA_TEST_BACKENDS names "${name}", which is not here`);
  return backends;
}
