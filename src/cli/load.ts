/** Loading the trained model of a run: its latest published weights, checked against its configuration. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { load } from "../formats/tensors.ts";
import { GPT2 } from "../models/index.ts";
import type { Module } from "../nn/index.ts";
import { buildClassifier, readClassifierConfig } from "./classifier-run.ts";
import { readModelConfig } from "./gpt-run.ts";
import { RunError } from "./run-folder.ts";

/** Puts the weights of `folder`/model.safetensors into a model. Throws RunError, SafetensorsError, ShapeError. */
async function loadWeights<M extends Module>(folder: string, model: M): Promise<M> {
  const path = join(folder, "model.safetensors");
  if (!existsSync(path))
    throw new RunError(
      `${folder} has no weights yet (model.safetensors): the run was stopped before its first checkpoint; go on with --resume`,
    );
  try {
    model.loadStateDict(await load(path), { assign: true });
  } catch (error) {
    if (error instanceof Error && error.name === "ShapeError")
      error.message = `${path} does not fit ${join(folder, "config.json")}: ${error.message}`;
    throw error;
  }
  model.eval();
  return model;
}

export const loadGpt = (folder: string): Promise<GPT2> => loadWeights(folder, new GPT2(readModelConfig(folder)));

export const loadClassifier = (folder: string): Promise<Module> =>
  loadWeights(folder, buildClassifier(readClassifierConfig(folder)));
