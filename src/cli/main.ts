/**
 * The command line: which commands there are, and what becomes of their errors. Each command is one file that declares
 * its flags and loads what it works with only when it runs, so that help and version answer at once.
 */
import { readFileSync } from "node:fs";
import type { Command } from "commander";
import { exitCodes, reportError, UsageError } from "./exit.ts";

/** What a command's action gives back: an exit code, or nothing for success. */
export type Outcome = Promise<number | undefined>;

/** Declares a command: its flags go to `parent`, its result to `done`. */
export type Declare = (parent: Command, done: (outcome: Outcome) => Promise<void>) => void;

const commands: readonly (() => Promise<{ declare: Declare }>)[] = [
  () => import("./start.ts"),
  () => import("./train.ts"),
  () => import("./finetune.ts"),
  () => import("./generate.ts"),
  () => import("./eval.ts"),
  () => import("./embed.ts"),
  () => import("./merge.ts"),
  () => import("./convert.ts"),
  () => import("./info.ts"),
  () => import("./doctor.ts"),
  () => import("./plan.ts"),
  () => import("./graph.ts"),
];

/** The version of the package that this file is part of; the same place from src/cli and dist/cli. */
export function version(): string {
  return JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")).version;
}

const epilogue = `
Exit codes: 0 done, 1 checked and found wanting, 2 wrong usage, 65 wrong data, 69 no such backend here,
70 internal error, 74 file or disk, 76 the loss is no longer finite, 130 Ctrl-C.
Environment: NABLA_DEVICE (cpu, reference), NABLA_THREADS, NABLA_DEBUG=1|2|4, NABLA_FUSE=0.`;

/** Runs one command line, and returns its exit code. Nothing is thrown. */
export async function main(argv: readonly string[]): Promise<number> {
  if (argv.length === 1 && (argv[0] === "--version" || argv[0] === "-V")) {
    console.log(version());
    return exitCodes.ok;
  }
  // A pipe that is closed early (| head) is no fault of ours.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") process.exit(exitCodes.ok);
    throw error;
  });
  let code: number = exitCodes.ok;
  try {
    const { Command, CommanderError } = await import("commander");
    const program = new Command("nabla")
      .description("Nabla (∇): train, evaluate and run neural networks")
      .version(version(), "-V, --version", "print the version")
      .helpOption("-h, --help", "print this help")
      .showHelpAfterError("(--help shows what there is)")
      .addHelpText("after", epilogue)
      .exitOverride();
    const done = async (outcome: Outcome): Promise<void> => {
      code = (await outcome) ?? exitCodes.ok;
    };
    for (const { declare } of await Promise.all(commands.map((load) => load()))) declare(program, done);
    try {
      await program.parseAsync(argv as string[], { from: "user" });
    } catch (error) {
      if (!(error instanceof CommanderError)) throw error;
      // commander has printed its own message; asking for help is no error
      return error.exitCode === 0 ? exitCodes.ok : exitCodes.usage;
    }
    return code;
  } catch (error) {
    if (error instanceof UsageError) {
      console.error(`nabla: ${error.message}`);
      return exitCodes.usage;
    }
    return reportError(error);
  }
}
