/**
 * A thread as a browser starts it: a Worker from a text. The browser's build puts this file in the place of `thread.ts`.
 * Threads share memory only on a page that is isolated from other origins (the headers Cross-Origin-Opener-Policy:
 * same-origin and Cross-Origin-Embedder-Policy: require-corp).
 */
import type { Thread } from "./thread.ts";
import { type Answer, type Message, workerSource } from "./worker.ts";

/** The browser's globals, as much of them as is used here: this package does not ask its users for the DOM's types. */
interface Page {
  readonly crossOriginIsolated?: boolean;
  readonly navigator?: { readonly hardwareConcurrency?: number };
  readonly Worker: new (
    url: string,
    options: { name: string },
  ) => {
    postMessage(message: Message): void;
    addEventListener(type: "message", listener: (event: { readonly data: Answer }) => void): void;
    addEventListener(type: "error", listener: (event: { readonly message?: string }) => void): void;
    terminate(): void;
  };
}
const page = globalThis as unknown as Page;

/** Threads that the host runs at a time; 0 where it has none that share memory. */
export const availableThreads = async (): Promise<number> =>
  page.crossOriginIsolated ? (page.navigator?.hardwareConcurrency ?? 1) : 0;

export async function startThread(): Promise<Thread> {
  const url = URL.createObjectURL(new Blob([workerSource("self")], { type: "text/javascript" }));
  const worker = new page.Worker(url, { name: "nabla wasm" });
  return {
    postMessage: (message) => worker.postMessage(message),
    onMessage: (listener) =>
      worker.addEventListener("message", ({ data }) => {
        URL.revokeObjectURL(url);
        listener(data);
      }),
    onExit: (listener) =>
      worker.addEventListener("error", ({ message }) => listener(message || "a worker did not load")),
    hold: () => {},
    terminate: async () => worker.terminate(),
  };
}
