/**
 * The text that `nabla start` trains on: the documentation comments of @types/node, which every checkout installs. Comments only: it is
 * mostly English, and about the size of a small book. The comments are put in a mixed order that is the same everywhere, so that the
 * held-out end of the text is of the same kind as the rest.
 */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { RunError } from "./run-folder.ts";

/** The comments of one declaration file, without their stars. */
function commentsOf(source: string): string[] {
  return (source.match(/\/\*\*[\s\S]*?\*\//g) ?? []).map((comment) =>
    comment
      .slice(3, -2)
      .replace(/^[ \t]*\*[ \t]?/gm, "")
      .replace(/[ \t]+$/gm, "")
      .trim(),
  );
}

/** The text. Throws RunError where @types/node is not installed. */
export function readDocumentation(): string {
  let folder: string;
  try {
    folder = dirname(createRequire(import.meta.url).resolve("@types/node/package.json"));
  } catch {
    throw new RunError(
      "nabla start trains on the documentation in @types/node, which is not installed here; npm install @types/node brings it, " +
        "or train on text of your own: npx nabla train gpt --data FILE --out runs/x",
    );
  }
  const files = readdirSync(folder, { recursive: true })
    .map(String)
    .filter((name) => name.endsWith(".d.ts"))
    .sort();
  const seen = new Set<string>(); // some comments stand above several overloads
  const parts: string[] = [];
  for (const name of files)
    for (const comment of commentsOf(readFileSync(join(folder, name), "utf8"))) {
      if (comment.length < 20 || seen.has(comment)) continue;
      seen.add(comment);
      parts.push(comment);
    }
  const key = (comment: string): string => createHash("sha256").update(comment).digest("hex");
  const order = parts.map((comment) => ({ comment, key: key(comment) })).sort((a, b) => (a.key < b.key ? -1 : 1));
  return `${order.map(({ comment }) => comment).join("\n\n")}\n`;
}
