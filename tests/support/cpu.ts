/** Whether the compiled cpu backend is here, for tests that run on nothing else. */
import { findCompiler } from "../../src/backends/cpu/toolchain.ts";
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
