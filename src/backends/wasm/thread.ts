/**
 * A thread as Node starts it: `worker_threads`. In the browser's build `thread.browser.ts` is in the place of this file.
 */
import { type Answer, type Message, workerSource } from "./worker.ts";

/** A thread, as much of it as is used here. */
export interface Thread {
  postMessage(message: Message): void;
  onMessage(listener: (answer: Answer) => void): void;
  onExit(listener: (reason: string) => void): void;
  /** Whether the process waits for it. */
  hold(on: boolean): void;
  terminate(): Promise<unknown>;
}

/** Threads that the host runs at a time; 0 where it has none that share memory. */
export async function availableThreads(): Promise<number> {
  const { availableParallelism } = await import("node:os");
  return availableParallelism();
}

export async function startThread(): Promise<Thread> {
  const { Worker } = await import("node:worker_threads");
  const source = workerSource('require("node:worker_threads").parentPort');
  const worker = new Worker(source, { eval: true, name: "nabla wasm", execArgv: [] });
  worker.unref();
  return {
    postMessage: (message) => worker.postMessage(message),
    onMessage: (listener) => worker.on("message", listener),
    onExit: (listener) => {
      worker.on("error", (error: Error) => listener(error.message));
      worker.on("exit", (code) => listener(`it ended with code ${code}`));
    },
    hold: (on) => (on ? worker.ref() : worker.unref()),
    terminate: () => worker.terminate(),
  };
}
