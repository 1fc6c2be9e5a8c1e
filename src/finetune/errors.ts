/** The error of fine-tuning: options that can't be followed, adapters and data that do not fit. */
import { NablaError } from "../core/errors.ts";

/** The message says what does not fit, where (layer, file, line, field), what was expected, and what to do. */
export class FinetuneError extends NablaError {
  override name = "FinetuneError";
}

/** Names for a message, twenty of them at most. */
export function listed(names: readonly string[]): string {
  const shown = names.slice(0, 20).map((name) => `"${name}"`);
  return shown.join(", ") + (names.length > 20 ? ` and ${names.length - 20} more` : "");
}
