/**
 * The two kinds of text that `nabla start` learns, both from @types/node, which every checkout installs: the documentation comments, mostly
 * English and about the size of a small book; and the declarations between them, which are code. Both are put in a mixed order that is the
 * same everywhere, so that the held-out end of a text is of the same kind as the rest.
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

/** What stands between the comments of a declaration file, in pieces: a declaration each, as far as empty lines part them. */
function declarationsOf(source: string): string[] {
  const bare = source.replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, "").replace(/[ \t]+$/gm, "");
  const code = bare.replace(/^ {4}/gm, ""); // nearly all of it stands inside of a module's braces
  return code.split(/\n{2,}/).map((piece) => piece.replace(/^\n+|\n+$/g, ""));
}

/** Pieces in an order that their content decides. */
function mixed(pieces: readonly string[]): string[] {
  const key = (piece: string): string => createHash("sha256").update(piece).digest("hex");
  return pieces
    .map((piece) => ({ piece, key: key(piece) }))
    .sort((a, b) => (a.key < b.key ? -1 : 1))
    .map(({ piece }) => piece);
}

/** The pieces that `of` finds in all files, each once. Throws RunError where @types/node is not installed. */
function piecesOf(of: (source: string) => string[]): string[] {
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
  // some comments stand above several overloads
  return [...new Set(files.flatMap((name) => of(readFileSync(join(folder, name), "utf8"))))];
}

/** The documentation. Throws RunError where @types/node is not installed. */
export function readDocumentation(): string {
  const comments = piecesOf(commentsOf).filter((comment) => comment.length >= 20);
  return `${mixed(comments).join("\n\n")}\n`;
}

/** Declarations of about `length` characters in all, written with those of `alphabet` only. Throws as readDocumentation. */
export function readDeclarations(length: number, alphabet: ReadonlySet<string>): string {
  const fit = piecesOf(declarationsOf).filter(
    (piece) => piece.length >= 40 && [...piece].every((c) => alphabet.has(c)),
  );
  let text = "";
  for (const piece of mixed(fit)) {
    if (text.length >= length) break;
    text += `${piece}\n\n`;
  }
  return text;
}
