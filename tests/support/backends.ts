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

/** Opens the WebGPU backend on whatever adapter is here; where there is none, a skipped test says why. */
async function webgpu(): Promise<Backend | null> {
  try {
    const { openWebGpuBackend } = await import("../../src/backends/webgpu/index.ts");
    return await openWebGpuBackend();
  } catch (error) {
    test("on webgpu", { skip: (error as Error).message.replace(/^webgpu: /, "") }, () => {});
    return null;
  }
}

/**
 * Whether an ordinary run does less on this backend: a software WebGPU adapter compiles slowly, and takes the rest under
 * NABLA_LONG=1.
 */
export const isBrief = ({ name }: Backend): boolean => name === "webgpu" && process.env["NABLA_LONG"] !== "1";

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
    backends.push(await module[open]());
  }
  if (isWanted("webgpu")) backends.push(...[await webgpu()].filter((b) => b !== null));
  for (const name of wanted ?? [])
    if (!backends.some((backend) => backend.name === name))
      throw new Error(`NABLA_TEST_BACKENDS names "${name}", which is not here`);
  return backends;
}
