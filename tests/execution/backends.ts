/** Backends for tests: the reference backend answering late, and whether the compiled one is here. */
import type { Backend, Program } from "../../src/backends/backend.ts";
import { referenceBackend } from "../../src/backends/reference/index.ts";
import { backendOf, registerBackend } from "../../src/execution/index.ts";

const later = <T>(f: () => T): Promise<T> =>
  new Promise((resolve, reject) => {
    setImmediate(() => {
      try {
        resolve(f());
      } catch (error) {
        reject(error);
      }
    });
  });

/** The reference backend, opened, compiling, running and reading with a delay: every asynchronous path of the flush. */
export function lateBackend(): Promise<Backend> {
  const inner = referenceBackend();
  return later(() => ({
    ...inner,
    name: "late",
    read: (memory, dtype, length) => later(() => inner.read(memory, dtype, length) as never),
    compile: (capture) =>
      later((): Program => {
        const program = inner.compile(capture) as Program;
        return { ...program, run: (run) => later(() => program.run(run) as undefined) };
      }),
  }));
}

registerBackend("late", lateBackend);

/** The name of the compiled CPU backend, or null with the reason why it is not here. */
export async function compiledCpu(): Promise<{ device: string | null; reason: string }> {
  const backend = await backendOf("cpu");
  return backend.name !== "cpu"
    ? { device: null, reason: "the cpu backend does not open here" }
    : { device: "cpu", reason: "" };
}
