/**
 * Programs kept on disk beside their kernels: what fusing, planning and rendering made of a lowered graph, so that a later
 * process that asks for the same need not do it again. Kernels are found or built from their sources as ever
 * (toolchain.ts). A kept program is used only where everything that it follows from is equal, letter by letter: the graph,
 * the processor, the settings, and the text of the compiler itself. One that is cut short or damaged is made anew.
 */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { deserialize, serialize } from "node:v8";
import { deflateRawSync, inflateRawSync } from "node:zlib";
import type { Lowered } from "../../compiler/lower.ts";
import type { Attrs, AttrValue } from "../../graph/node.ts";
import type { Capture } from "../backend.ts";
import type { Parts } from "./assemble.ts";
import type { NativeRuntime } from "./native.ts";
import { isOwn } from "./own.ts";
import { cacheFolder, writeAside } from "./toolchain.ts";

/** Programs that are made faster than this are not worth a file. */
const WORTH_MS = 20;
const HASH_BYTES = 32;

const sha256 = (data: string | Uint8Array): Buffer => createHash("sha256").update(data).digest();

let code: string | null | undefined;

/** A hash of all files that decide what becomes of a graph; null where they are not to be found (in a bundle, say). */
function codeHash(): string | null {
  if (code !== undefined) return code;
  const hash = createHash("sha256");
  try {
    for (const folder of ["../../core/", "../../compiler/", "./", "./runtime/"]) {
      const path = fileURLToPath(new URL(folder, import.meta.url));
      for (const name of readdirSync(path).sort()) {
        if (!/\.(ts|js|c|h|inc)$/.test(name) || name.endsWith(".d.ts")) continue;
        const text = readFileSync(join(path, name));
        hash.update(`${folder}${name} ${text.length}\n`).update(text);
      }
    }
    code = hash.digest("hex");
  } catch {
    code = null;
  }
  return code;
}

/** Attributes as text that differs wherever they differ; JSON would lose NaN, the infinities and −0. */
const showValue = (value: AttrValue): string =>
  typeof value === "number"
    ? Object.is(value, -0)
      ? "-0"
      : String(value)
    : Array.isArray(value)
      ? `[${value.map(showValue).join(",")}]`
      : JSON.stringify(value);
const showAttrs = (attrs: Attrs): string => {
  let text = "";
  for (const name in attrs) text += `${JSON.stringify(name)}:${showValue(attrs[name])};`;
  return text;
};

/** All that a program follows from, as text; null where a part of it is not data (a user's function writes its kernel). */
export function programKey(
  runtime: Pick<NativeRuntime, "features" | "shape">,
  capture: Capture,
  lowered: Lowered,
  settings: string,
  bodies: readonly Lowered[] = [],
): string | null {
  const version = codeHash();
  if (version === null) return null;
  const lines = [version, settings, `${runtime.features} ${JSON.stringify(runtime.shape)} ${process.arch}`];
  for (const s of capture.storages) lines.push(`storage ${s.dtype} ${s.length}`);
  for (const r of capture.roots) lines.push(`output ${r.dtype} ${r.shape.join(",")}`);
  lines.push(`scalars ${capture.scalars.length}`);
  // the bodies of loops, which the graph has only by name, count as what they became
  for (const graph of [lowered, ...bodies]) {
    for (const n of graph.nodes) {
      if (isOwn(n)) return null;
      let line = `${n.id} ${n.op} ${n.dtype} ${n.shape.join(",")} ${n.storage} ${n.slot} `;
      for (const x of n.inputs) line += `%${x.id}`;
      line += showAttrs(n.attrs);
      if (n.outputs) for (const o of n.outputs) line += ` ${o.dtype} ${o.shape.join(",")}`;
      lines.push(line);
    }
    for (const n of graph.roots) lines.push(`root ${n.id}`);
    for (const a of graph.assigns) lines.push(`assign ${a.storage} ${a.value.id}`);
  }
  return lines.join("\n");
}

const pathOf = (key: string): string => join(cacheFolder(), `program-${sha256(key).toString("hex").slice(0, 40)}.bin`);

/** The kept program of `key`, or null. */
function readKept(path: string, key: string): Parts | null {
  let data: Buffer;
  try {
    data = readFileSync(path);
  } catch {
    return null; // there is none
  }
  const body = data.subarray(HASH_BYTES);
  if (!sha256(body).equals(data.subarray(0, HASH_BYTES))) return null;
  try {
    const kept = deserialize(inflateRawSync(body)) as { readonly key: string; readonly parts: Parts };
    return kept.key === key ? kept.parts : null;
  } catch {
    return null; // another version of Node wrote it
  }
}

function writeKept(path: string, key: string, parts: Parts): void {
  // kernels' sources begin alike, so that a megabyte becomes some ten kilobytes
  const body = deflateRawSync(serialize({ key, parts }), { level: 1 });
  writeAside(path, Buffer.concat([sha256(body), body]), 0o600);
}

/** The program of `key` from disk, or from `make`, whose work is kept if it took `worth` ms. A null key is never kept. */
export function keptProgram(key: string | null, make: () => Parts, worth = WORTH_MS): Parts {
  const path = key === null ? "" : pathOf(key);
  if (key !== null) {
    const kept = readKept(path, key);
    if (kept) return kept;
  }
  const begin = performance.now();
  const parts = make();
  if (key !== null && performance.now() - begin >= worth) writeKept(path, key, parts);
  return parts;
}
