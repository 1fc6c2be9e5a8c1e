/** The package compiled beside dist, which may be in use, or be of another time. */
import { spawnSync } from "node:child_process";
import { cpSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The repository. */
export const root = fileURLToPath(new URL("../../", import.meta.url));

export const tsc = join(dirname(createRequire(import.meta.url).resolve("typescript/package.json")), "bin", "tsc");

/** Compiles src into a folder, the C sources beside it, as scripts/build.mjs does; gives what TypeScript complains of, "" if of nothing. */
export function buildInto(folder: string): string {
  const options = ["-p", join(root, "tsconfig.build.json"), "--outDir", folder];
  const { status, stdout, error } = spawnSync(process.execPath, [tsc, ...options], { cwd: root, encoding: "utf8" });
  if (error) throw error;
  const runtime = join("backends", "cpu", "runtime");
  cpSync(join(root, "src", runtime), join(folder, runtime), { recursive: true });
  return status === 0 ? "" : stdout || `tsc: exit status ${status}`;
}
