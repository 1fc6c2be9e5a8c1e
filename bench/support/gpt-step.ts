/** The two GPT benchmarks' common part: GPT-2's architecture trained with AdamW on made-up tokens. */
import { optim, tensor } from "../../src/index.ts";
import { GPT2 } from "../../src/models/index.ts";
import { integers } from "./numbers.ts";
import type { Served } from "./protocol.ts";
import { serveTraining } from "./training.ts";
import { fill } from "./weights.ts";

export interface GptStep {
  readonly vocabSize: number;
  readonly contextLength: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly hiddenSize: number;
  readonly batch: number;
  /** Steps a sample. */
  readonly steps: number;
}

/** Vocabulary 65, 6 layers, 6 heads, width 384, context 256, batch 8: 10.8 M parameters. */
export const largeGpt: GptStep = {
  vocabSize: 65,
  contextLength: 256,
  numLayers: 6,
  numHeads: 6,
  hiddenSize: 384,
  batch: 8,
  steps: 2,
};

export const gptArguments = (g: GptStep): string[] =>
  [g.vocabSize, g.contextLength, g.numLayers, g.numHeads, g.hiddenSize, g.batch, g.steps].map(String);

/** `own`: the model keeps the weights it was made with; setting others would count as memory of ours. */
export async function serveGpt(g: GptStep, own = false): Promise<Served> {
  const model = new GPT2(g);
  if (!own) fill(model, (name) => /\.c_.*weight$/.test(name));
  const optimizer = new optim.AdamW(model.parameters(), { lr: 1e-3, weightDecay: 0.01 });
  const tokens = (seed: number) =>
    tensor(integers(seed, g.batch * g.contextLength, g.vocabSize), { shape: [g.batch, g.contextLength] });
  const batches = Array.from({ length: 8 }, (_, i) => [tokens(10 + i), tokens(20 + i)]);
  return serveTraining({
    model,
    optimizer,
    steps: g.steps,
    loss: (i) => model.forward(batches[i % 8][0], batches[i % 8][1]),
  });
}
