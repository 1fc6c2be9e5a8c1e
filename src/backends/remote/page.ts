/**
 * A page's way to its worker. A page's main thread must answer its user, so it compiles nothing and runs no kernel: each
 * backend is opened in a dedicated worker. In a worker of the user's own there is no need for a second one.
 */
import { BackendError } from "../../core/errors.ts";
import { type ModuleWorker, startModule, type WorkerClass } from "../../core/module-worker.ts";
import type { Backend } from "../backend.ts";
import { openRemoteBackend, type Port } from "./client.ts";
import type { Answer, Request } from "./wire.ts";

declare const Worker: WorkerClass<Request, Answer>;

const start = (): ModuleWorker<Request, Answer> =>
  startModule(
    "./worker.js",
    import.meta.url,
    () => new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "nabla" }),
    "nabla",
  );

/** Opens the backend `name` in a worker. Rejects with BackendError, saying why, where it does not open there. */
export async function openInWorker(name: string): Promise<Backend> {
  const worker = start();
  const port: Port = {
    send: (request, transfer) => worker.postMessage(request, transfer),
    listen: (answer, lost) => {
      worker.addEventListener("message", ({ data }) => answer(data));
      worker.addEventListener("messageerror", () => lost("a message could not be read"));
      worker.addEventListener("error", (event) => {
        event.preventDefault();
        lost(event.message || "its script could not be loaded");
        worker.terminate();
      });
    },
  };
  try {
    return await openRemoteBackend(port, name);
  } catch (error) {
    worker.terminate();
    throw error instanceof BackendError ? error : new BackendError(`${name}: ${(error as Error).message}`);
  }
}
