/**
 * The page's side: a backend whose memory and programs are in a worker. Nothing is compiled and no kernel runs here; a
 * request is a message, and what has an answer is a promise. With the worker everything that it held is lost: then
 * every call throws BackendError, saying so.
 */
import type { TypedArray } from "../../core/dtype.ts";
import * as errors from "../../core/errors.ts";
import { revive } from "../../core/module-worker.ts";
import type { Backend, Capture, Program, ProgramStats } from "../backend.ts";
import { Collector } from "../collector.ts";
import { type Answer, type Opened, type Request, writeCapture } from "./wire.ts";

/** A way to a worker that hosts a backend. */
export interface Port {
  send(request: Request, transfer: ArrayBuffer[]): void;
  /** Whom to give answers, and whom to tell, in words, that no more will come. Called once, before anything is sent. */
  listen(answer: (answer: Answer) => void, lost: (reason: string) => void): void;
}

interface Call {
  resolve(value: never): void;
  reject(error: Error): void;
}

interface RemoteMemory {
  readonly number: number;
}

type Asked = Extract<Request, { call: number }>;
type WithoutCall<T> = T extends unknown ? Omit<T, "call"> : never;

/** Requests with answers, by number, until the worker is lost. */
class Line {
  readonly #port: Port;
  readonly #calls = new Map<number, Call>();
  #lost: errors.BackendError | null = null;
  #next = 0;

  constructor(port: Port) {
    this.#port = port;
    port.listen(
      (answer) => this.#take(answer),
      (reason) => this.#lose(reason),
    );
  }

  /** A number for memory, a program or a call. */
  number(): number {
    return this.#next++;
  }

  /** Sends what has no answer. Throws where the worker is lost. */
  tell(request: Request, transfer: ArrayBuffer[] = []): void {
    if (this.#lost) throw this.#lost;
    this.#port.send(request, transfer);
  }

  /** Sends what nobody needs to know of when the worker is lost. */
  release(request: Request): void {
    if (!this.#lost) this.#port.send(request, []);
  }

  async ask<T>(request: WithoutCall<Asked>): Promise<T> {
    if (this.#lost) throw this.#lost;
    const call = this.number();
    return new Promise<T>((resolve, reject) => {
      this.#calls.set(call, { resolve, reject });
      this.#port.send({ ...request, call } as Asked, []);
    });
  }

  #take(answer: Answer): void {
    const call = this.#calls.get(answer.call);
    this.#calls.delete(answer.call);
    if ("error" in answer) call?.reject(revive(answer.error, errors));
    else call?.resolve(answer.value as never);
  }

  #lose(reason: string): void {
    this.#lost ??= new errors.BackendError(
      `the worker that computes was lost (${reason}); what was in its memory is gone. Load the page again and go on from the last checkpoint`,
    );
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const call of calls) call.reject(this.#lost);
  }
}

/** Opens the backend `name` in the worker at the other end. Rejects with the worker's reason where it does not open there. */
export async function openRemoteBackend(port: Port, name: string): Promise<Backend> {
  const line = new Line(port);
  const { dtypes, operations } = await line.ask<Opened>({ kind: "open", backend: name });
  const known = new Set(operations);
  const collector = new Collector();
  const unreachable = new FinalizationRegistry<number>((memory) => line.release({ kind: "free", memory }));
  const numberOf = (memory: unknown): number => (memory as RemoteMemory).number;
  return {
    name,
    dtypes,
    allocate: (bytes) => {
      collector.count(bytes);
      const memory: RemoteMemory = { number: line.number() };
      line.tell({ kind: "allocate", memory: memory.number, bytes });
      unreachable.register(memory, memory.number);
      return memory;
    },
    write: (memory, given) => {
      const data = given.slice() as TypedArray;
      line.tell({ kind: "write", memory: numberOf(memory), data }, [data.buffer as ArrayBuffer]);
    },
    read: (memory, dtype, length) => line.ask({ kind: "read", memory: numberOf(memory), dtype, length }),
    compile,
  };

  async function compile(capture: Capture): Promise<Program> {
    const program = line.number();
    const stats = await line.ask<ProgramStats>({ kind: "compile", program, capture: writeCapture(capture, known) });
    return {
      stats,
      run: ({ buffers, scalars, outputs }) =>
        line.ask<void>({
          kind: "run",
          program,
          buffers: buffers.map(numberOf),
          scalars,
          outputs: outputs.map(numberOf),
        }),
      dispose: () => line.release({ kind: "dispose", program }),
      describe: (stage) => `the ${stage} of this program is with the worker that runs it`,
    };
  }
}
