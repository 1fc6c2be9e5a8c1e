/**
 * A page's way to its worker. A page's main thread must answer its user, so it compiles nothing and runs no kernel: each
 * backend is opened in a dedicated worker. In a worker of the user's own there is no need for a second one.
 */
import { BackendError } from "../../core/errors.ts";
import type { Backend } from "../backend.ts";
import { openRemoteBackend, type Port } from "./client.ts";
import type { Answer, Request } from "./wire.ts";

/** What of the page is used (TypeScript's library for browsers is not among ours). */
interface BrowserWorker {
  postMessage(request: Request, transfer: ArrayBuffer[]): void;
  addEventListener(type: "message", listener: (event: { readonly data: Answer }) => void): void;
  addEventListener(
    type: "error",
    listener: (event: { readonly message?: string; preventDefault(): void }) => void,
  ): void;
  addEventListener(type: "messageerror", listener: () => void): void;
  terminate(): void;
}
declare const Worker: new (
  url: URL | string,
  options: { readonly type: "module"; readonly name: string },
) => BrowserWorker;

/** A file beside this one. A function, so that a bundler takes no address in it for a file that it should copy. */
const beside = (file: string): URL => new URL(file, import.meta.url);

function start(): BrowserWorker {
  // written out in one piece, with constant options: this is how bundlers find a worker and make it a file of its own
  if (beside("").origin === (globalThis as { origin?: string }).origin)
    return new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "nabla" });
  // a browser starts no script of another origin as a worker, but a text of ours may import it
  const { href } = beside("./worker.js");
  const text = new Blob([`import ${JSON.stringify(href)};`], { type: "text/javascript" });
  return new Worker(URL.createObjectURL(text), { type: "module", name: "nabla" });
}

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
