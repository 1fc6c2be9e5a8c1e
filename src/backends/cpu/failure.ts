/** What a failed run tells the user: from the operation and position in the error word to an error. */
import { IndexError } from "../../core/errors.ts";
import type { Failure } from "../assembly.ts";

/**
 * `position` is the index found, or (of operations with checks of their own, unless `tellsIndex`) the place where it was
 * found.
 */
export function failureError(failures: readonly Failure[], op: number, position: number, tellsIndex = false): Error {
  const failure = failures[op - 1];
  if (!failure) return new IndexError(`a kernel failed (operation ${op}, position ${position})`);
  const { operation, check } = failure;
  if (check.kind === "division") return new IndexError(`${operation}: integer division by zero`);
  const isKernel = operation === "indexing";
  const what = isKernel || tellsIndex ? `index ${position}` : `the index at position ${position}`;
  return new IndexError(
    `${isKernel ? "" : `${operation}: `}${what} is out of range for an axis of ${check.extent}; expected 0 … ${check.extent - 1} (a label or token outside its range?). No state was changed`,
  );
}
