/** Running the command as a user would: a process of its own, its output, its exit code. */
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { formatIdx } from "../../src/data/idx.ts";

export const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const command = join(root, "bin", "nabla.js");

export interface Finished {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly cwd?: string;
  /** Called with the child when it has started, and at every piece of its output. */
  readonly onOutput?: (stdout: string, kill: (signal: NodeJS.Signals) => void) => void;
  /** SIGKILL after so many milliseconds. */
  readonly killAfter?: number;
}

/** Runs `nabla` with arguments; on the reference device unless the environment or a flag says otherwise. */
export function nabla(args: readonly string[], options: RunOptions = {}): Promise<Finished> {
  const { env = {}, cwd = root, onOutput, killAfter } = options;
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [command, ...args], {
      cwd,
      env: { ...process.env, NABLA_DEVICE: "reference", NODE_OPTIONS: "", ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let stdout = "";
    let stderr = "";
    const timer = killAfter === undefined ? null : setTimeout(() => child.kill("SIGKILL"), killAfter);
    child.stdout.on("data", (piece) => {
      stdout += piece;
      onOutput?.(stdout, (signal) => child.kill(signal));
    });
    child.stderr.on("data", (piece) => {
      stderr += piece;
    });
    child.on("error", reject);
    child.on("close", (code, signal) => {
      if (timer !== null) clearTimeout(timer);
      resolve({ code, signal, stdout, stderr });
    });
  });
}

/** A folder for a test file, removed at the process's end. */
export function makeRoom(): string {
  const room = mkdtempSync(join(tmpdir(), "nabla-cli-"));
  process.on("exit", () => rmSync(room, { recursive: true, force: true }));
  return room;
}

/** A small text with some order in it. */
export function writeText(path: string): string {
  const words = ["the", "cat", "saw", "a", "dog", "and", "ran", "home", "again"];
  let state = 7;
  const lines = Array.from({ length: 120 }, () =>
    Array.from({ length: 8 }, () => {
      state = (state * 1103515245 + 12345) % 2147483648;
      return words[state % words.length];
    }).join(" "),
  );
  writeFileSync(path, `${lines.join("\n")}\n`);
  return path;
}

/** Flags of a GPT that trains in a second. */
export const tinyGpt = (data: string, out: string, ...more: string[]): string[] =>
  `train gpt --data ${data} --out ${out} --layers 1 --width 8 --heads 2 --context 8 --batch 2 --dropout 0.1 --seed 3`
    .split(" ")
    .concat(more);

/** IDX files of `count` small images whose class can be seen: one bright row of four. */
export function writeImages(
  folder: string,
  count: number,
  options: { readonly labels?: (i: number) => number; readonly split?: "train" | "t10k" } = {},
): void {
  const { labels = (i) => i % 4, split = "train" } = options;
  const side = 8;
  const pixels = new Uint8Array(count * side * side);
  const classes = Uint8Array.from({ length: count }, (_, i) => labels(i));
  for (let i = 0; i < count; i++)
    for (let c = 0; c < side; c++) {
      pixels[i * side * side + 2 * (classes[i] % 4) * side + c] = 200 + ((i * 7 + c) % 50);
      pixels[i * side * side + ((i * 13 + c * 5) % (side * side))] ||= (i * 31 + c) % 60;
    }
  writeFileSync(
    join(folder, `${split}-images-idx3-ubyte`),
    formatIdx({ dtype: "uint8", shape: [count, side, side], data: pixels }),
  );
  writeFileSync(
    join(folder, `${split}-labels-idx1-ubyte`),
    formatIdx({ dtype: "uint8", shape: [count], data: classes }),
  );
}

/** The log of a run without what differs from run to run: the time. */
export function logOf(run: string): Record<string, unknown>[] {
  return readFileSync(join(run, "metrics.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => {
      const { seconds, ...rest } = JSON.parse(line);
      if (typeof seconds !== "number") throw new Error(`a line without seconds: ${line}`);
      return rest;
    });
}

export const weightsOf = (run: string): Buffer => readFileSync(join(run, "model.safetensors"));
