/** The compiled cpu backend, for tests that run on nothing else: whether it is here, and a cache of a test's own. */
import { mkdirSync, mkdtempSync, readdirSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { NativeRuntime } from "../../src/backends/cpu/native.ts";
import { cacheFolder, findCompiler } from "../../src/backends/cpu/toolchain.ts";
import { backendOf, setDevice } from "../../src/execution/index.ts";

/** Makes "cpu" the default device, so that nothing computes in its stead; gives why it does not open here, false where it does. */
export async function whyNoCpu(): Promise<string | false> {
  setDevice("cpu");
  try {
    await backendOf("cpu");
    return false;
  } catch (error) {
    return `the cpu backend does not open here: ${(error as Error).message}`;
  }
}

/** The faster of what is here: "cpu" where there is a C compiler, else "wasm". */
export const nativeDevice = (): "cpu" | "wasm" => (findCompiler() === null ? "wasm" : "cpu");

/**
 * A new folder for NABLA_CACHE_DIR, which holds nothing but what takes seconds to compile and is the same for all: the runtime, and the
 * probes of processor and compiler.
 */
export async function ownCache(): Promise<string> {
  await NativeRuntime.open();
  const folder = mkdtempSync(join(tmpdir(), "nabla-cache-"));
  const kernels = join(folder, "kernels");
  mkdirSync(kernels);
  for (const name of readdirSync(cacheFolder()).filter((each) => /^(runtime|probe)-\w+\.\w+$/.test(each)))
    symlinkSync(join(cacheFolder(), name), join(kernels, name));
  return folder;
}
