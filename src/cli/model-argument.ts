/**
 * What MODEL on the command line is: a folder in Hugging Face's layout, or a GGUF file. Every command that takes a model asks here, and
 * only here; what is in it is read by pretrained-model.ts.
 */
import { existsSync, statSync } from "node:fs";
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

/** The argument and its help, the same for every command. */
export const modelArgument = ["<model>", "a folder in Hugging Face's layout, or a GGUF file"] as const;

/** Finds the model. Throws ModelError that says what is at that place instead. */
export async function findModel(name: string): Promise<ModelPlace> {
  if (!existsSync(name))
    throw new ModelError(
      `there is no folder or file "${name}"; MODEL is a folder with config.json and model.safetensors, or a GGUF file`,
    );
  if (statSync(name).isDirectory()) {
    if (existsSync(join(name, "adapter_config.json")) && !existsSync(join(name, "config.json")))
      throw new ModelError(
        `${name} holds an adapter, not a model; give the model that it was trained on, and the adapter by --adapter ${name}`,
      );
    if (!existsSync(join(name, "config.json")))
      throw new ModelError(
        `${name} is not a model's folder: it has no config.json; a folder in Hugging Face's layout holds config.json and model.safetensors`,
      );
    return { kind: "folder", path: name, name };
  }
  if (/\.gguf$/i.test(name)) return { kind: "gguf", path: name, name };
  if (/\.(safetensors|bin|pt|pth|json)$/i.test(name))
    throw new ModelError(`${name} is one file of a model; give the folder that it is in`);
  throw new ModelError(`${name} is neither a folder nor a .gguf file`);
}
