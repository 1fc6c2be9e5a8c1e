/** Starting a worker of the browser's build from a page. */

/** What of a browser's worker is used (TypeScript's library for browsers is not among ours). */
export interface ModuleWorker<Request, Answer> {
  postMessage(request: Request, transfer?: ArrayBuffer[]): void;
  addEventListener(type: "message", listener: (event: { readonly data: Answer }) => void): void;
  addEventListener(
    type: "error",
    listener: (event: { readonly message?: string; preventDefault(): void }) => void,
  ): void;
  addEventListener(type: "messageerror", listener: () => void): void;
  terminate(): void;
}

/** The browser's own constructor of them, its global Worker. */
export type WorkerClass<Request, Answer> = new (
  url: URL | string,
  options: { readonly type: "module"; readonly name: string },
) => ModuleWorker<Request, Answer>;

/**
 * Starts the module at `url`. `direct` starts it by its address, and is written where the address is: bundlers look for
 * `new Worker(new URL("./x.js", import.meta.url), …)` and pack the worker's file then.
 */
export function startModule<Request, Answer>(
  url: URL,
  direct: () => ModuleWorker<Request, Answer>,
  name: string,
): ModuleWorker<Request, Answer> {
  const { origin, Worker } = globalThis as unknown as { origin?: string; Worker: WorkerClass<Request, Answer> };
  if (url.origin === origin) return direct();
  // a browser starts no script of another origin as a worker, but a text of ours may import it
  const text = new Blob([`import ${JSON.stringify(url.href)};`], { type: "text/javascript" });
  return new Worker(URL.createObjectURL(text), { type: "module", name });
}
