/**
 * TypeScript to JavaScript by esbuild, kept beside the packages (node_modules/.cache): an entry a file, which ends with a
 * digest of what it was made of. Types are left to `npm run check`.
 */
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const folder = join(root, "node_modules", ".cache", "nabla-transpiled");
const require = createRequire(import.meta.url);
/** Loaded where there is something to do: most processes find all they need. */
const esbuild = () => require("esbuild");

const options = {
  loader: "ts",
  format: "esm",
  target: `node${process.versions.node}`,
  sourcemap: "inline",
  sourcesContent: false,
  // an import stays, used or not, as TypeScript leaves it with the same setting
  tsconfigRaw: { compilerOptions: { verbatimModuleSyntax: true } },
};
const { version } = JSON.parse(
  readFileSync(join(dirname(dirname(require.resolve("esbuild"))), "package.json"), "utf8"),
);
const settings = JSON.stringify([version, options]);

const digest = (...parts) => {
  const hash = createHash("sha1");
  for (const part of parts) hash.update(`${part.length}:`).update(part);
  return hash.digest("hex");
};

/** The text of a file, where its JavaScript is kept, and how the entry ends that was made of this very text. */
function look(path) {
  const text = readFileSync(path, "utf8");
  return { path, text, entry: join(folder, `${digest(path)}.js`), mark: `\n//${digest(settings, text)}\n` };
}

function kept({ entry, mark }) {
  try {
    const code = readFileSync(entry, "utf8");
    return code.endsWith(mark) ? code : null;
  } catch {
    return null;
  }
}

/** Written aside and renamed, so that nobody reads half of it. One that can't be written is made again next time. */
function keep({ entry, mark }, code) {
  const aside = `${entry}.${process.pid}`;
  try {
    mkdirSync(folder, { recursive: true });
    writeFileSync(aside, code + mark);
    renameSync(aside, entry);
  } catch {
    // a folder of packages that is read-only
  }
  return code;
}

/** The JavaScript of a file. */
export function transpiled(path) {
  const file = look(path);
  return kept(file) ?? keep(file, esbuild().transformSync(file.text, { ...options, sourcefile: path }).code);
}

/** Makes what is missing of many files: in one process, where each of those that need it would start esbuild by itself. */
export async function transpileAhead(paths) {
  const missing = paths.map(look).filter((file) => kept(file) === null);
  if (missing.length === 0) return;
  await Promise.all(
    missing.map(async (file) => {
      try {
        keep(file, (await esbuild().transform(file.text, { ...options, sourcefile: file.path })).code);
      } catch {
        // whoever imports it meets the error
      }
    }),
  );
  await esbuild().stop();
}
