/**
 * The script of the worker that computes for a page: a module of its own, which `page.ts` starts by its address.
 */
import "../../graph/composites/index.ts"; // which the backends need, and then are in one file with the operations
import { Host } from "./host.ts";
import type { Answer, Request } from "./wire.ts";

/** What of a dedicated worker's global scope is used. */
interface Scope {
  postMessage(answer: Answer, transfer: ArrayBuffer[]): void;
  addEventListener(type: "message", listener: (event: { readonly data: Request }) => void): void;
}

const scope = globalThis as unknown as Scope;
const host = new Host(
  {
    wasm: async () => (await import("../wasm/index.ts")).openWasmBackend(),
    webgpu: async () => (await import("../webgpu/index.ts")).openWebGpuBackend(),
  },
  (answer, transfer) => scope.postMessage(answer, transfer),
);
scope.addEventListener("message", ({ data }) => host.handle(data));
