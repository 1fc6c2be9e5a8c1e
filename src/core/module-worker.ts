/** A page and the workers of the browser's build: whether this is one, how it starts them, and what their errors become. */

/** Whether this is a page's main thread, which must go on answering its user. */
export const isPage = (): boolean => typeof (globalThis as { document?: unknown }).document === "object";

type ErrorClass = new (message: string) => Error;

/** An error that came from a worker as one of ours: of the class in `kinds` that its name names, where there is one. */
export function revive({ name, message }: { readonly name: string; readonly message: string }, kinds: object): Error {
  const known = (kinds as Readonly<Record<string, ErrorClass | undefined>>)[name];
  return known ? new known(message) : Object.assign(new Error(message), { name });
}

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
 * Starts the module `file` beside the one at `address`. `direct` starts it too, and is written out where it is called: bundlers
 * look for `new Worker(new URL("./x.js", import.meta.url), …)` with constant options and pack the worker's file then.
 * (Written as one `new URL` of constants, `file` and `address` would make them copy the file as it is.)
 */
export function startModule<Request, Answer>(
  file: string,
  address: string,
  direct: () => ModuleWorker<Request, Answer>,
  name: string,
): ModuleWorker<Request, Answer> {
  const url = new URL(file, address);
  const { origin, Worker } = globalThis as unknown as { origin?: string; Worker: WorkerClass<Request, Answer> };
  if (url.origin === origin) return direct();
  // a browser starts no script of another origin as a worker, but a text of ours may import it
  const text = new Blob([`import ${JSON.stringify(url.href)};`], { type: "text/javascript" });
  return new Worker(URL.createObjectURL(text), { type: "module", name });
}
