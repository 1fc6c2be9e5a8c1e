/** Ctrl-C: the first asks the training to end after the step at hand, the second ends the program. */
import { exitCodes } from "./exit.ts";

export interface Interrupt {
  readonly signal: AbortSignal;
  /** Gives Ctrl-C its usual meaning back. */
  release(): void;
}

/** Takes SIGINT and SIGTERM over. `tell` is called at the first of them. */
export function takeInterrupts(tell: () => void): Interrupt {
  const controller = new AbortController();
  const handler = (): void => {
    if (controller.signal.aborted) process.exit(exitCodes.interrupted);
    controller.abort();
    tell();
  };
  const names = ["SIGINT", "SIGTERM"] as const;
  for (const name of names) process.on(name, handler);
  return {
    signal: controller.signal,
    release() {
      for (const name of names) process.off(name, handler);
    },
  };
}
