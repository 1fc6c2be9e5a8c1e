/**
 * A LoRA step on GPT-2's 124 M shape: rank 16 on all linear layers, 4 × 256 tokens, AdamW; against PEFT on transformers, in float32 and in mixed
 * precision (products in bfloat16) against its autocast. The time of a step, and the most that is resident in the whole process over three.
 */

import { applyLora } from "../src/finetune/index.ts";
import { autocast, noGrad, optim, tensor } from "../src/index.ts";
import { GPT2 } from "../src/models/index.ts";
import { type Benchmark, type Result, race } from "./support/benchmark.ts";
import { integers, uniform } from "./support/numbers.ts";
import { Absent, type Served } from "./support/protocol.ts";
import { ours, python, type Side } from "./support/sides.ts";
import { serveTraining } from "./support/training.ts";
import { fill } from "./support/weights.ts";

const shape = { vocabSize: 50257, contextLength: 1024, numLayers: 12, numHeads: 12, hiddenSize: 768 };
const [batch, time, rank] = [4, 256, 16];
type Precision = "float32" | "bfloat16";
const peerIn = (precision: Precision): Side =>
  python("peft", "lora.py", "eager", ...[...Object.values(shape), batch, time, rank].map(String), precision);

async function serve([precision]: readonly string[]): Promise<Served> {
  const base = new GPT2({ ...shape, dropout: 0 });
  // setting other weights would count as memory of ours
  if (!process.env["NABLA_BENCH_MEMORY"]) fill(base, () => false);
  const model = applyLora(base, { r: rank, alpha: 2 * rank, target: "all-linear" });
  let seed = 5000;
  for (const [name, parameter] of model.namedParameters())
    if (name.includes("lora_A"))
      noGrad(() =>
        parameter.copy_(
          tensor(uniform(seed++, parameter.size, 1 / Math.sqrt(parameter.shape[1])), { shape: parameter.shape }),
        ),
      );
  model.train();
  const optimizer = new optim.AdamW(
    model.parameters().filter((p) => p.requiresGrad),
    { lr: 1e-3, weightDecay: 0.01 },
  );
  const batches = [0, 1].map((i) => tensor(integers(10 + i, batch * time, shape.vocabSize), { shape: [batch, time] }));
  const targets = [0, 1].map((i) => tensor(integers(20 + i, batch * time, shape.vocabSize), { shape: [batch, time] }));
  return serveTraining({
    model,
    optimizer,
    steps: 1,
    checked: 3,
    loss: (i) => autocast({ enabled: precision === "bfloat16" }, () => model.forward(batches[i % 2], targets[i % 2])),
  });
}

async function peak(side: Side): Promise<{ title: string; mb: number }> {
  const session = await side.open();
  const { peak: bytes } = await session.memory(3);
  await session.close();
  return { title: session.title, mb: bytes / 1e6 };
}

const suffix = (precision: Precision): string => (precision === "bfloat16" ? ", products in bfloat16" : "");

async function memory(precision: Precision): Promise<Result> {
  const common = { line: `most resident${suffix(precision)}`, unit: "MB", target: { atLeast: 2 } };
  process.env["NABLA_BENCH_MEMORY"] = "1"; // the peer then tries no numbers of threads
  const mine = await peak(ours("lora", precision));
  try {
    const theirs = await peak(peerIn(precision));
    const ratio = theirs.mb / mine.mb;
    return {
      ...common,
      peer: theirs.title,
      ours: mine.mb,
      theirs: theirs.mb,
      ratio,
      ratioOfMinima: ratio,
      difference: null,
    };
  } catch (error) {
    if (!(error instanceof Absent)) throw error;
    return { ...common, peer: "peft", absent: error.message, ours: mine.mb };
  } finally {
    delete process.env["NABLA_BENCH_MEMORY"];
  }
}

export const benchmark: Benchmark = {
  name: "lora",
  title: "LoRA step: GPT-2's 124 M shape, rank 16 on all linear layers, 4 × 256 tokens, AdamW",
  ours: serve,
  run: async (options) => {
    const results: Result[] = [];
    for (const precision of ["float32", "bfloat16"] as const) {
      const times = await race(options, {
        sides: [ours("lora", precision), peerIn(precision)],
        lines: ["step"],
        seconds: 1,
        // three steps' losses: what rounding to 8 bits moves is below this
        tolerance: precision === "bfloat16" ? 4e-3 : 1e-3,
        targets: { peft: { atLeast: precision === "bfloat16" ? 1 : 1.8 } },
      });
      results.push(...times.map((each) => ({ ...each, line: each.line + suffix(precision) })), await memory(precision));
    }
    return results;
  },
};
