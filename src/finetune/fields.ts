/** Fields of the objects that examples are read from. */
import { FinetuneError } from "./errors.ts";

/** A value as messages show it. */
export const show = (x: unknown): string => {
  const text = JSON.stringify(x) ?? String(x);
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
};

/** A field that is a text. Throws FinetuneError naming it. */
export function stringField(value: object, field: string, where: string): string {
  const found = (value as Record<string, unknown>)[field];
  if (typeof found !== "string")
    throw new FinetuneError(
      `${where}: "${field}" must be a text, got ${found === undefined ? "nothing" : show(found)}`,
    );
  return found;
}
