/**
 * What a thread of the `wasm` backend does, as text: a worker of Node or of a browser runs it as it is, so that nobody has
 * to find or bundle a file, whichever way the package is loaded. It takes modules and runs from messages; its owner is
 * `threads.ts`. The same as `instances.ts` does in the calling thread.
 */
import type { CompiledModule, LinearMemory } from "./engine.ts";
import { hostSource } from "./host.ts";

export type Message =
  | { readonly kind: "start"; readonly memory: LinearMemory; readonly tid: number; readonly team: number }
  | { readonly kind: "add"; readonly module: CompiledModule; readonly base: number; readonly count: number }
  | { readonly kind: "run"; readonly program: number };
/** `ready` after the start, `done` from thread 0 after a run, `failed` where WebAssembly has trapped. */
export type Answer = { readonly kind: "ready" | "done" } | { readonly kind: "failed"; readonly reason: string };

/** `port`: the expression that gives what messages come and go through. */
export const workerSource = (port: string): string => `
"use strict";
const port = ${port};
const answer = (a) => port.postMessage(a);
const host = ${hostSource};
const table = new WebAssembly.Table({ initial: 64, element: "anyfunc" });
let memory, tid, team, run;
const handlers = {
  start(m) {
    ({ memory, tid, team } = m);
    answer({ kind: "ready" });
  },
  add({ module, base, count }) {
    const missing = base + count - table.length;
    if (missing > 0) table.grow(Math.max(missing, table.length));
    const env = { ...host, memory, table, base: new WebAssembly.Global({ value: "i32" }, base) };
    const instance = new WebAssembly.Instance(module, { env });
    run ??= instance.exports.run;
  },
  run({ program }) {
    run(program, tid, team);
    if (tid === 0) answer({ kind: "done" });
  },
};
const take = (m) => {
  try {
    handlers[m.kind](m);
  } catch (error) {
    answer({ kind: "failed", reason: String((error && error.message) || error) });
  }
};
if (port.on) port.on("message", take);
else port.onmessage = (e) => take(e.data);
`;
