/** What a failed run tells the user: from the operation and position in the error word to an error. */
import { IndexError } from "../../core/errors.ts";
import type { Failure } from "../assembly.ts";

/** `position` is the index found, or (of operations with checks of their own) the place where it was found. */
export function failureError(failures: readonly Failure[], op: number, position: number): Error {
  const failure = failures[op - 1];
  if (!failure) return new IndexError(`a kernel failed (operation ${op}, position ${position})`);
  if (failure.check.kind === "division") return new IndexError(`${failure.operation}: integer division by zero`);
  const { extent } = failure.check;
  if (failure.operation !== "indexing")
    return new IndexError(
      `${failure.operation}: the index at position ${position} is out of range; expected 0 … ${extent - 1}. No state was changed`,
    );
  return new IndexError(
    `index ${position} is out of range for an axis of ${extent}; expected 0 … ${extent - 1} (a label or token outside its range?). No state was changed`,
  );
}
