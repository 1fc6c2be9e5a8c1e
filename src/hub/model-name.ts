/** Names of models on the hub: `org/name`, a file in it, a revision. */

export interface ModelName {
  /** `org/name`. */
  readonly id: string;
  /** A branch, a tag or a commit; "main" by default. */
  readonly revision: string;
  /** The path of the one file that is meant; null for the model as a whole. */
  readonly file: string | null;
}

/** Whether a path stays inside the folder that it is relative to; paths of the hub have "/" between names. */
export const isInside = (path: string): boolean =>
  !/[\\:\0]/.test(path) && path.split("/").every((part) => part !== "" && part !== "." && part !== "..");

const part = "[A-Za-z0-9_](?:[\\w.-]{0,94}[\\w-])?";
const pattern = new RegExp(`^(${part}/${part})(?:/([^@]+\\.gguf))?(?:@([\\w./-]+))?$`, "i");

/**
 * `org/name`, `org/name/file.gguf`, each with `@revision` if need be; null for what can't be a name on the hub (it begins with "." or "/",
 * or has more parts). Whether there is a file or folder of that name is not looked at here.
 */
export function parseModelName(text: string): ModelName | null {
  const match = pattern.exec(text);
  if (match === null) return null;
  const [, id, file = null, revision = "main"] = match;
  if (/--|\.\./.test(id) || !isInside(revision) || (file !== null && !isInside(file))) return null;
  return { id, revision, file };
}
