/**
 * What a pretrained network is worth: ResNet-20, trained on CIFAR-10's aeroplanes and frogs, is fine-tuned to tell pneumonia from 200
 * chest X-rays, and compared with the same network that starts from nothing. The README beside this file says how, and what came out.
 *
 *   node --import tsx recipes/x-rays/finetune.ts [--data FOLDER] [--seeds 5] [--quick]
 */
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { type ClassExample, classTask, finetune } from "../../src/finetune/index.ts";
import { readNpz } from "../../src/formats/index.ts";
import { manualSeed, noGrad, type Tensor, tensor } from "../../src/index.ts";
import { CifarResNet, loadCifarResNet } from "../../src/models/index.ts";
import { predict } from "../../src/train/index.ts";

/** Pictures, each grey of 28 × 28 bytes, and labels: 0 normal, 1 pneumonia. */
export interface XRays {
  readonly pictures: readonly Uint8Array[];
  readonly labels: readonly number[];
}

/** One part of PneumoniaMNIST (MedMNIST v2): "train", "val" or "test". */
export async function readXRays(file: string, part: "train" | "val" | "test"): Promise<XRays> {
  const arrays = await readNpz(file);
  const bytesOf = async (name: string): Promise<Uint8Array> => {
    const array = arrays.get(`${part}_${name}`);
    if (array === undefined) throw new Error(`${file} has no ${part}_${name}`);
    return array.read();
  };
  const labels = Array.from(await bytesOf("labels"));
  const bytes = await bytesOf("images");
  const pictures = labels.map((_, i) => bytes.subarray(i * 28 * 28, (i + 1) * 28 * 28));
  return { pictures, labels };
}

/** As the network has them: enlarged to 32 × 32 by bilinear interpolation, three equal channels. [count, 3, 32, 32], 0 to 255. */
function asPictures({ pictures }: XRays): Tensor {
  const weights = Array.from({ length: 32 }, (_, i) => {
    const at = Math.min(Math.max(((i + 0.5) * 28) / 32 - 0.5, 0), 27);
    const low = Math.min(Math.floor(at), 26);
    return { low, high: at - low };
  });
  const out = new Float32Array(pictures.length * 32 * 32);
  pictures.forEach((picture, i) => {
    weights.forEach((y, row) => {
      weights.forEach((x, column) => {
        const [a, b] = [y.low * 28 + x.low, (y.low + 1) * 28 + x.low];
        const upper = picture[a] * (1 - x.high) + picture[a + 1] * x.high;
        const lower = picture[b] * (1 - x.high) + picture[b + 1] * x.high;
        out[(i * 32 + row) * 32 + column] = upper * (1 - y.high) + lower * y.high;
      });
    });
  });
  return tensor(out, { shape: [pictures.length, 1, 32, 32] }).expand(-1, 3, -1, -1);
}

const picture = [3, 32, 32];

/** Normalised once: what the network is given, and the classes. */
async function examplesOf(network: CifarResNet, rays: XRays): Promise<ClassExample[]> {
  const inputs = (await network.preprocess(asPictures(rays)).data()) as Float32Array;
  const size = 3 * 32 * 32;
  return rays.labels.map((label, i) => ({ input: inputs.slice(i * size, (i + 1) * size), label }));
}

/** `perClass` pictures of each class, by chance. */
export function choose({ pictures, labels }: XRays, perClass: number, seed: number): XRays {
  let state = (seed % 2147483646) + 1;
  const random = (): number => (state = (state * 48271) % 2147483647) / 2147483647;
  const chosen = [0, 1].flatMap((label) => {
    const of = labels.flatMap((each, i) => (each === label ? [i] : []));
    for (let i = 0; i < perClass; i++) {
      const j = i + Math.floor(random() * (of.length - i));
      [of[i], of[j]] = [of[j], of[i]];
    }
    return of.slice(0, perClass);
  });
  return { pictures: chosen.map((i) => pictures[i]), labels: chosen.map((i) => labels[i]) };
}

export interface Scores {
  /** The area under the ROC curve: how often a picture with pneumonia is scored above a normal one; ties count half. */
  readonly auc: number;
  /** The mean of the shares of both classes that are right. */
  readonly balancedAccuracy: number;
}

export function scoresOf(scores: ArrayLike<number>, labels: readonly number[]): Scores {
  const of = (label: number): number[] => Array.from(scores).filter((_, i) => labels[i] === label);
  const [normal, ill] = [of(0), of(1)];
  let above = 0;
  for (const a of ill) for (const b of normal) above += a > b ? 1 : a === b ? 0.5 : 0;
  const right = normal.filter((x) => x <= 0).length / normal.length + ill.filter((x) => x > 0).length / ill.length;
  return { auc: above / (normal.length * ill.length), balancedAccuracy: right / 2 };
}

/** Scores on pictures: the logit of pneumonia less that of normal. */
async function test(network: CifarResNet, examples: readonly ClassExample[]): Promise<Scores> {
  const logits = await (await predict(network, together(examples, picture))).data();
  return scoresOf(
    examples.map((_, i) => logits[2 * i + 1] - logits[2 * i]),
    examples.map(({ label }) => label),
  );
}

export type Start = "pretrained" | "nothing";

export interface XRayData {
  readonly checkpoint: string;
  readonly train: XRays;
  readonly val: XRays;
  readonly test: XRays;
}

/** Four passes over 200 pictures in batches of 20. The network from nothing gets three times as many. */
export const steps: Readonly<Record<Start, number>> = { pretrained: 40, nothing: 120 };

/** Inputs of examples as one tensor [count, …shape]. */
function together(examples: readonly ClassExample[], shape: readonly number[]): Tensor {
  const size = examples[0].input.length;
  const inputs = new Float32Array(examples.length * size);
  examples.forEach(({ input }, i) => {
    inputs.set(input, i * size);
  });
  return tensor(inputs, { shape: [examples.length, ...shape] });
}

/**
 * Gives a pretrained network its new last layer: trained by itself on the features as they are, which are computed once. What
 * begins with a random last layer spoils its features before that layer is of use (Kumar et al. 2022, "Fine-tuning can distort
 * pretrained features").
 */
async function trainHead(network: CifarResNet, examples: readonly ClassExample[], seed: number): Promise<void> {
  const features = await noGrad(() => network.features(together(examples, picture))).data();
  const width = features.length / examples.length;
  const data = examples.map(({ label }, i) => ({
    input: Float32Array.from(features.slice(i * width, (i + 1) * width)),
    label,
  }));
  await finetune(network.linear, {
    task: classTask({ shape: [width], classes: 2 }),
    data,
    evaluation: data.slice(0, 20),
    steps: 200,
    evaluateEvery: 200,
    keepBest: false,
    batch: 20,
    lr: 1e-2,
    weightDecay: 0.01,
    seed,
  });
}

/** Trains one network on 200 X-rays, chosen by the seed, and scores it on `on`. */
export async function train(
  start: Start,
  data: XRayData,
  { lr, seed, on }: { readonly lr: number; readonly seed: number; readonly on: "val" | "test" },
): Promise<Scores> {
  manualSeed(seed);
  const network =
    start === "pretrained"
      ? await loadCifarResNet(data.checkpoint, { numClasses: 2 })
      : new CifarResNet({ blocks: 3, numClasses: 2 });
  const examples = await examplesOf(network, choose(data.train, 100, seed));
  const held = await examplesOf(network, data[on]);
  if (start === "pretrained") await trainHead(network, examples, seed);
  await finetune(network, {
    task: classTask({ shape: picture, classes: 2 }),
    data: examples,
    evaluation: held.slice(0, 20), // what is asked of it is measured below, on all
    steps: steps[start],
    evaluateEvery: steps[start],
    keepBest: false, // the last weights, not those that do best on what is measured
    batch: 20,
    lr,
    weightDecay: 0.01,
    seed,
  });
  return test(network, held);
}

const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length;

/** Half of the 95 % interval of a mean, by Student's t. */
export function halfInterval(values: readonly number[]): number {
  const t = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262][values.length - 2];
  const m = mean(values);
  return t * Math.sqrt(mean(values.map((x) => (x - m) ** 2)) / (values.length - 1));
}

/** The learning rates that are tried for each, on the validation pictures, with two seeds that are not used again. */
const rates = [3e-4, 1e-3, 3e-3, 1e-2];

async function tune(start: Start, data: XRayData, print: (line: string) => void): Promise<number> {
  let best = { lr: 0, auc: 0 };
  for (const lr of rates) {
    const aucs: number[] = [];
    for (const seed of [101, 102]) aucs.push((await train(start, data, { lr, seed, on: "val" })).auc);
    const auc = mean(aucs);
    print(`  from ${start}, rate ${lr}: AUC ${auc.toFixed(4)} on the validation pictures`);
    if (auc > best.auc) best = { lr, auc };
  }
  return best.lr;
}

/** The whole comparison; gives the differences, pretrained − nothing, a seed each. */
export async function compare(
  data: XRayData,
  seeds: readonly number[],
  lrs: Readonly<Record<Start, number>>,
  print: (line: string) => void,
): Promise<{ readonly auc: number[]; readonly balancedAccuracy: number[] }> {
  const differences = { auc: [] as number[], balancedAccuracy: [] as number[] };
  for (const seed of seeds) {
    const pretrained = await train("pretrained", data, { lr: lrs.pretrained, seed, on: "test" });
    const nothing = await train("nothing", data, { lr: lrs.nothing, seed, on: "test" });
    for (const key of ["auc", "balancedAccuracy"] as const) differences[key].push(pretrained[key] - nothing[key]);
    const both = ({ auc, balancedAccuracy }: Scores): string =>
      `AUC ${auc.toFixed(4)}, balanced accuracy ${(100 * balancedAccuracy).toFixed(1)} %`;
    print(`  seed ${seed}: pretrained ${both(pretrained)}; from nothing ${both(nothing)}`);
  }
  return differences;
}

export async function readData(folder: string): Promise<XRayData> {
  const file = join(folder, "pneumoniamnist", "pneumoniamnist-reassembled.npz");
  const [train, val, test] = await Promise.all(
    (["train", "val", "test"] as const).map((part) => readXRays(file, part)),
  );
  return { checkpoint: join(folder, "resnet20-cifar10", "resnet20-12fca82f.th"), train, val, test };
}

/** The rates that `tune` has found (see the README). */
export const tuned: Readonly<Record<Start, number>> = { pretrained: 3e-3, nothing: 3e-3 };

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { data: { type: "string" }, seeds: { type: "string" }, quick: { type: "boolean" } },
  });
  const folder =
    values.data ?? process.env["NABLA_TEST_DATA"] ?? fileURLToPath(new URL("../../../shared/data", import.meta.url));
  const data = await readData(folder);
  console.log("200 chest X-rays to learn from, 624 others to test on");
  const lrs = values.quick
    ? tuned
    : { pretrained: await tune("pretrained", data, console.log), nothing: await tune("nothing", data, console.log) };
  console.log(`rates: pretrained ${lrs.pretrained}, from nothing ${lrs.nothing}`);
  const seeds = Array.from({ length: Number(values.seeds ?? 5) }, (_, i) => i + 1);
  const { auc, balancedAccuracy } = await compare(data, seeds, lrs, console.log);
  if (seeds.length < 2) return;
  const line = (values: readonly number[], scale: number, digits: number): string =>
    `${(scale * mean(values)).toFixed(digits)} ± ${(scale * halfInterval(values)).toFixed(digits)}`;
  console.log(
    `pretrained − from nothing, mean and paired 95 % interval over ${seeds.length} seeds: ` +
      `AUC ${line(auc, 1, 4)}, balanced accuracy ${line(balancedAccuracy, 100, 1)} points`,
  );
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
