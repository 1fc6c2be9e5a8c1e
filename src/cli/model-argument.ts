/**
 * What MODEL on the command line is: a folder in Hugging Face's layout, a GGUF file, or a name on the hub, which is fetched. Every command that
 * takes a model asks here, and only here; what is in it is read by pretrained-model.ts.
 */
import { existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { NablaError } from "../core/errors.ts";

/** A MODEL that is no model. */
export class ModelError extends NablaError {
  override name = "ModelError";
}

export interface ModelPlace {
  readonly kind: "folder" | "gguf";
  /** The folder, or the file. */
  readonly path: string;
  /** What was written on the command line. */
  readonly name: string;
}

export const modelHelp = "a folder in Hugging Face's layout, a GGUF file, or a name on the hub (org/name)";

/** The argument and its help, the same for every command. */
export const modelArgument = ["<model>", modelHelp] as const;

/** Finds the model; one of the hub is fetched. Throws ModelError that says what is at that place instead, and HubError. */
export async function findModel(name: string): Promise<ModelPlace> {
  if (!existsSync(name)) {
    const { parseModelName } = await import("../hub/model-name.ts");
    if (parseModelName(name) !== null) return fetched(name);
    throw new ModelError(
      `there is no folder or file "${name}"; MODEL is a folder with config.json and model.safetensors, a GGUF file, or a name on the hub (org/name)`,
    );
  }
  return local(name, name);
}

/** Names the GGUF files of a folder, of which each is a model; "" where there are none. */
function ggufIn(path: string, name: string): string {
  const files = readdirSync(path).filter((file) => /\.gguf$/i.test(file));
  return files.length === 0 ? "" : `. It has GGUF files, name one: ${files.map((file) => join(name, file)).join(", ")}`;
}

/** What is at a path. */
function local(path: string, name: string): ModelPlace {
  if (statSync(path).isDirectory()) {
    if (existsSync(join(path, "adapter_config.json")) && !existsSync(join(path, "config.json")))
      throw new ModelError(
        `${name} holds an adapter, not a model; give the model that it was trained on, and the adapter by --adapter ${name}`,
      );
    if (!existsSync(join(path, "config.json")))
      throw new ModelError(
        `${name} is not a model's folder: it has no config.json; a folder in Hugging Face's layout holds config.json and model.safetensors${ggufIn(path, name)}`,
      );
    return { kind: "folder", path, name };
  }
  if (/\.gguf$/i.test(path)) return { kind: "gguf", path, name };
  if (/\.(safetensors|bin|pt|pth|json)$/i.test(path))
    throw new ModelError(`${name} is one file of a model; give the folder that it is in`);
  throw new ModelError(`${name} is neither a folder nor a .gguf file`);
}

/** The least time between two lines about a download, in milliseconds: on a terminal, and in a pipe. */
const pace = { live: 100, plain: 10_000 };

/** A model of the hub, from the cache or downloaded; how far it is stands on stderr. */
async function fetched(name: string): Promise<ModelPlace> {
  const { modelFolder } = await import("../hub/index.ts");
  const { formatBytes } = await import("../train/terminal.ts");
  const live = process.stderr.isTTY === true;
  let shownAt = performance.now();
  let shown = false;
  const path = await modelFolder(name, {
    onProgress(loaded, total) {
      const now = performance.now();
      if (now - shownAt < (live ? pace.live : pace.plain)) return;
      [shownAt, shown] = [now, true];
      const of = total === null ? "" : ` of ${formatBytes(total)} (${Math.floor((100 * loaded) / total)} %)`;
      const text = `fetching ${name}: ${formatBytes(loaded)}${of}`;
      process.stderr.write(live ? `\r\u001b[K${text}` : `${text}\n`);
    },
  }).finally(() => {
    if (live && shown) process.stderr.write("\r\u001b[K");
  });
  return local(path, name);
}
