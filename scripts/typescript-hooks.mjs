/** How modules of TypeScript are found and read (typescript.mjs registers it). */
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { transpiled } from "./transpile.mjs";

/** What is imported here by a path with its ending is that file; Node's own search takes a third of the time of a start. */
export function resolve(specifier, context, next) {
  if (/^\.\.?\/.*\.ts$/.test(specifier) && context.parentURL?.startsWith("file:")) {
    const { href } = new URL(specifier, context.parentURL);
    if (existsSync(fileURLToPath(href))) return { url: href, format: "module", shortCircuit: true };
  }
  return next(specifier, context);
}

export function load(url, context, next) {
  if (!url.startsWith("file:") || !/\.ts(\?|$)/.test(url)) return next(url, context);
  return { format: "module", source: transpiled(fileURLToPath(url)), shortCircuit: true };
}
