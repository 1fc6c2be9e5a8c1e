/** Paths in the origin's private file system, with "/" between names, as node:path's functions would have it. */

/** Joins parts; "." and empty names are left out, ".." takes the name before it away. */
export function join(...parts: readonly string[]): string {
  const text = parts.filter((part) => part !== "").join("/");
  const names: string[] = [];
  for (const name of text.split("/"))
    if (name === ".." && names.length > 0 && names.at(-1) !== "..") names.pop();
    else if (name !== "" && name !== "." && !(name === ".." && text.startsWith("/"))) names.push(name);
  return (text.startsWith("/") ? "/" : "") + names.join("/") || ".";
}

export const basename = (path: string): string => path.replace(/\/+$/, "").split("/").at(-1) as string;

export function dirname(path: string): string {
  const trimmed = path.replace(/\/+$/, "");
  const at = trimmed.lastIndexOf("/");
  return at > 0 ? trimmed.slice(0, at) : path.startsWith("/") ? "/" : ".";
}

/** The ending with its dot; "" for none, and for names that begin with their only dot. */
export function extname(path: string): string {
  const name = basename(path);
  return name === ".." ? "" : (/[^/](\.[^./]*)$/.exec(name)?.[1] ?? "");
}
