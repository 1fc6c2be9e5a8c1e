/**
 * How the bench talks to the processes that it measures: a request and an answer, each one line of JSON, on a process's
 * standard input and output. Ours and the peers' speak the same, so that one file alternates between them. What is
 * measured is in the benchmarks' own files.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";

/** One thing to time: `run` is one sample, of `per` steps (or products). */
export interface Line {
  readonly name: string;
  readonly per: number;
  run(): Promise<unknown>;
}

/** What a process offers once it is ready. */
export interface Served {
  /** Who it is: library, version, threads. */
  readonly title: string;
  /** Numbers that all sides must agree on: the losses of the first steps, sums of results. Called once, before all else. */
  check(): Promise<readonly number[]>;
  readonly lines: readonly Line[];
}

/** A process started by the bench, in conversation. */
export interface Session {
  readonly title: string;
  check(): Promise<number[]>;
  /** Milliseconds a step of every sample taken within `seconds`, at least one. `active`: share of the JavaScript thread, ours only. */
  round(line: number, seconds: number): Promise<{ ms: number[]; active?: number }>;
  /** Bytes: resident after the imports, and the most since. */
  memory(steps: number): Promise<{ imported: number; peak: number }>;
  close(): Promise<void>;
}

/** A side that can't be had here, with the reason. */
export class Absent extends Error {
  override name = "Absent";
}

type Answer = Readonly<Record<string, unknown>>;

/** Starts a process that serves; resolves when it is ready. Throws Absent where it can't be had. */
export async function open(command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Session> {
  const child: ChildProcess = spawn(command, args, {
    stdio: ["pipe", "pipe", "pipe"],
    env: { ...process.env, ...env },
  });
  let complaints = "";
  child.stderr!.on("data", (chunk: Buffer) => {
    complaints = (complaints + chunk.toString()).slice(-4000);
    if (process.env["NABLA_BENCH_VERBOSE"]) process.stderr.write(chunk);
  });
  const ended = new Promise<never>((_, reject) => {
    child.on("error", (error) => reject(new Absent(`${command} does not start (${error.message})`)));
    child.on("exit", (code, signal) =>
      reject(new Error(`${command} ${args.join(" ")} ended (${signal ?? code}):\n${complaints.trim()}`)),
    );
  });
  ended.catch(() => {}); // whoever asks next is told
  const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  const answer = async (): Promise<Answer> => {
    for (;;) {
      const next = await Promise.race([lines.next(), ended]);
      if (next.done) return ended;
      if (next.value.startsWith("{")) return JSON.parse(next.value) as Answer;
    }
  };
  const ask = (request: Answer): Promise<Answer> => {
    child.stdin!.write(`${JSON.stringify(request)}\n`);
    return answer();
  };
  child.stdin!.on("error", () => {}); // a process that has gone is reported by its exit
  const first = await answer();
  if (typeof first["absent"] === "string") throw new Absent(first["absent"]);
  return {
    title: String(first["ready"]),
    check: async () => (await ask({ do: "check" }))["values"] as number[],
    round: async (line, seconds) => (await ask({ do: "round", line, seconds })) as never,
    memory: async (steps) => (await ask({ do: "memory", steps })) as never,
    close: async () => {
      child.stdin!.end();
      await Promise.race([ended.catch(() => {}), new Promise((resolve) => setTimeout(resolve, 5000).unref())]);
      if (child.exitCode === null) child.kill("SIGKILL");
    },
  };
}

/** Serves this process's standard input until it ends. `imported`: resident bytes after the imports. */
export async function serve(served: Served, imported: number, peak: () => number): Promise<void> {
  const say = (answer: Answer): void => void process.stdout.write(`${JSON.stringify(answer)}\n`);
  say({ ready: served.title });
  for await (const text of createInterface({ input: process.stdin })) {
    const request = JSON.parse(text) as { do: string; line: number; seconds: number; steps: number };
    if (request.do === "check") say({ values: await served.check() });
    else if (request.do === "round") say(await round(served.lines[request.line], request.seconds));
    else if (request.do === "memory") {
      const { run, per } = served.lines[0];
      for (let done = 0; done < request.steps; done += per) await run();
      say({ imported, peak: peak() });
    } else throw new Error(`unknown request ${text}`);
  }
}

/** Samples of one line for about `seconds`; the first one is not counted, it brings things back into the caches. */
async function round(line: Line, seconds: number): Promise<{ ms: number[]; active: number }> {
  await line.run();
  const ms: number[] = [];
  const end = performance.now() + 1000 * seconds;
  const before = performance.eventLoopUtilization();
  for (let now = performance.now(); ms.length === 0 || now < end; ) {
    await line.run();
    const after = performance.now();
    ms.push((after - now) / line.per);
    now = after;
  }
  return { ms, active: performance.eventLoopUtilization(before).utilization };
}
