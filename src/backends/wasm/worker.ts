/**
 * What a thread of the `wasm` backend does, as text: a worker of Node or of a browser runs it as it is, so that nobody has
 * to find or bundle a file, whichever way the package is loaded. It takes modules and runs from messages; its owner is
 * `threads.ts`. The same as `instances.ts` does in the calling thread.
 */
import type { CompiledModule, LinearMemory } from "./engine.ts";
import { hostSource } from "./host.ts";

export type Message =
  | { readonly kind: "start"; readonly memory: LinearMemory; readonly tid: number; readonly team: number }
  /** Kernel i of the module goes to entry slots[i] of the table, or nowhere if that is −1. */
  | { readonly kind: "add"; readonly module: CompiledModule; readonly slots: readonly number[] }
  | { readonly kind: "drop"; readonly slots: readonly number[] }
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
  add({ module, slots }) {
    const missing = Math.max(...slots) + 1 - table.length;
    if (missing > 0) table.grow(Math.max(missing, table.length));
    const { exports } = new WebAssembly.Instance(module, { env: { ...host, memory, table } });
    slots.forEach((slot, i) => slot >= 0 && table.set(slot, exports[i]));
    run ??= exports.run;
  },
  drop({ slots }) {
    for (const slot of slots) if (slot < table.length) table.set(slot, null);
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
