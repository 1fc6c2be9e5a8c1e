/**
 * Tests that need the compiled cpu backend: `describe`, `test` and `openCpuBackend` that skip, with the reason, where there is no
 * C compiler.
 */
import * as runner from "node:test";
import { openCpuBackend as open } from "../../../src/backends/cpu/index.ts";
import { findCompiler } from "../../../src/backends/cpu/toolchain.ts";

const skip = findCompiler() ? false : "no C compiler here";

export const test = (name: string, body: (t: runner.TestContext) => void | Promise<void>): void =>
  void runner.test(name, { skip }, body);

export const describe = (name: string, body: () => void): void =>
  void (skip ? runner.test(name, { skip }, () => {}) : runner.describe(name, body));

/** The backend; nothing where every test is skipped. */
export const openCpuBackend = async (options: Parameters<typeof open>[0]): ReturnType<typeof open> =>
  skip ? (undefined as never) : open(options);
