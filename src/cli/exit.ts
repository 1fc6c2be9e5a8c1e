/**
 * How a command ends: the exit code of every kind of error, and what is printed of it. The codes are those of BSD's
 * sysexits.h where it has one, so that a script can tell wrong data from a full disk. No command is here.
 */

/** A command line that can't be obeyed: a flag missing, two that exclude each other. */
export class UsageError extends Error {
  override name = "UsageError";
}

export const exitCodes = {
  ok: 0,
  /** The work was done, and what it found is a fault (a model that does not beat its baseline). */
  failed: 1,
  usage: 2,
  /** Input that can't be used: text, IDX, weights, a label out of range. */
  data: 65,
  /** A backend or compiler that is missing or does not work; a hub that does not answer. */
  unavailable: 69,
  /** A mistake of ours; the stack is printed. */
  internal: 70,
  /** A file or folder that can't be read or written. */
  file: 74,
  /** The loss became NaN or infinite. */
  diverged: 76,
  /** Stopped by Ctrl-C. */
  interrupted: 130,
} as const;

/** By the error's name, which each of our classes sets; names rather than classes, so that nothing heavy is imported. */
const codesByName: Readonly<Record<string, number>> = {
  UsageError: exitCodes.usage,
  FileError: exitCodes.file,
  TextError: exitCodes.data,
  TokenizerError: exitCodes.data,
  IdxError: exitCodes.data,
  LoaderError: exitCodes.data,
  SafetensorsError: exitCodes.data,
  CheckpointError: exitCodes.data,
  RunLogError: exitCodes.data,
  RunError: exitCodes.data,
  ConfigError: exitCodes.data,
  ShapeError: exitCodes.data,
  DTypeError: exitCodes.data,
  IndexError: exitCodes.data,
  BackendError: exitCodes.unavailable,
  HubError: exitCodes.unavailable,
  DivergedError: exitCodes.diverged,
  AnomalyError: exitCodes.diverged,
  InterruptedError: exitCodes.interrupted,
};

/** Whether an error is one that we throw on purpose, whose message says it all. */
function isOurs(error: unknown): error is Error {
  for (let proto: unknown = error; proto !== null && proto !== undefined; proto = Object.getPrototypeOf(proto))
    if ((proto as { constructor?: { name?: string } }).constructor?.name === "NablaError") return true;
  return error instanceof UsageError;
}

/** Prints what a user should know of an error, and returns the exit code. */
export function reportError(error: unknown, print: (text: string) => void = console.error): number {
  if (isOurs(error)) {
    print(`nabla: ${error.message}`);
    const { hint } = error as { hint?: string };
    if (hint !== undefined) print(`nabla: ${hint}`);
    if (process.env["NABLA_DEBUG"] !== undefined && error.stack) print(error.stack);
    return codesByName[error.name] ?? exitCodes.data;
  }
  print("nabla: an internal error; please report it with the lines below");
  print(error instanceof Error ? (error.stack ?? error.message) : String(error));
  return exitCodes.internal;
}
