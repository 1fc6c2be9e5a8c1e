/** JSON files beside a model, and files that need not be there. */
import { readBytes } from "../data/source.ts";
import { PretrainedError } from "./config.ts";

/** A file's bytes; null where there is none. */
export async function optionalBytes(path: string): Promise<Uint8Array | null> {
  try {
    return await readBytes(path);
  } catch (error) {
    const { code } = error as { code?: string };
    if (code === "ENOENT" || code === "HTTP404") return null;
    throw error;
  }
}

/** The value of a JSON file. Throws PretrainedError naming it. */
export function parseJson(bytes: Uint8Array, path: string): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new PretrainedError(`${path}: this is not valid JSON (${(error as Error).message})`);
  }
}
