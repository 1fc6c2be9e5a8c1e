/**
 * eval of a pretrained model, with an adapter or without: how it does on each example, and the metrics that this suffices for. What kinds of
 * metrics there are is the library's table (finetune/metrics.ts); which of them need more than the model's likelihoods is the table here.
 */
import { join } from "node:path";
import {
  languageTask,
  type Measurement,
  measure,
  metrics,
  metricsOf,
  type TextualExample,
  textTask,
} from "../finetune/index.ts";
import type { LanguageModel } from "../generate/index.ts";
import type { Module } from "../nn/index.ts";
import { formatCount } from "../train/terminal.ts";
import { openDevice } from "./device.ts";
import type { EvalFlags } from "./eval.ts";
import { exitCodes, UsageError } from "./exit.ts";
import { type LanguageExamples, readLanguage, readTargets } from "./finetune-data.ts";
import type { Outcome } from "./main.ts";
import type { ModelPlace } from "./model-argument.ts";
import { expectFree, writeWholeFolder } from "./model-folder.ts";
import { type ModelTokenizer, openTokenizer } from "./model-tokenizer.ts";
import { type AdapterPlace, configOf, findText, labelsOf, openModel, taskOf } from "./pretrained-model.ts";
import { fingerprint, writeJson } from "./run-folder.ts";
import { streamText } from "./stream.ts";

type Flags = EvalFlags & { readonly data: readonly string[] };

interface Opened {
  readonly place: ModelPlace;
  readonly adapter: AdapterPlace | undefined;
  readonly tokenizer: ModelTokenizer;
}

/** What has been measured of the examples, and what they were. */
interface Measured {
  readonly measurement: Measurement;
  readonly examples: readonly unknown[];
}

export async function evaluatePretrained(name: string, flags: Flags): Outcome {
  const wanted = metricNames(flags.metrics);
  if (flags.out !== undefined) expectFree(flags.out);
  const { place, adapter } = await findText(name, flags.adapter);
  const opened = { place, adapter, tokenizer: await openTokenizer(place) };
  const device = await openDevice(flags.device);
  const config = await configOf(place);
  const classifies = adapter ? adapter.taskType === "SEQ_CLS" : taskOf(config, place.name) === "classification";
  const { measurement, examples } = classifies
    ? await measureClasses(opened, flags, labelsOf(config))
    : await measureLanguage(opened, flags, wanted);
  const numbers = metricsOf(measurement.examples);
  const missing = (wanted ?? []).filter((each) => !(each in numbers));
  if (missing.length > 0)
    throw new UsageError(
      `--metrics: ${missing.join(", ")} can't be measured here; of this model and these data there are ${Object.keys(numbers).join(", ")}`,
    );
  const shown = Object.fromEntries(Object.entries(numbers).filter(([key]) => wanted === null || wanted.includes(key)));
  const { targets } = measurement;
  const outcome = { model: place.path, adapter: adapter?.folder ?? null, data: flags.data };
  if (flags.out !== undefined) await keep(flags.out, outcome, measurement, examples);
  if (flags.json) {
    console.log(JSON.stringify({ ...outcome, ...shown, examples: examples.length, targets }));
    return exitCodes.ok;
  }
  const what = adapter === undefined ? place.name : `${place.name} with ${adapter.folder}`;
  console.log(`${what}, on ${device}: ${formatCount(examples.length)} examples, ${formatCount(targets)} targets\n`);
  const width = Math.max(...Object.keys(shown).map((each) => each.length));
  for (const { name: each, write } of metrics)
    if (each in shown) console.log(`${each.padEnd(width)}  ${write(shown[each])}`);
  if (flags.out !== undefined) console.log(`\nkept in ${flags.out}, for nabla eval --compare`);
  return exitCodes.ok;
}

/** The names of --metrics as the table has them; "exact-match" is "exact match". Null where none are asked for. */
function metricNames(given: readonly string[] | undefined): readonly string[] | null {
  if (given === undefined) return null;
  const plain = (name: string): string =>
    name
      .trim()
      .toLowerCase()
      .replaceAll(/[\s_-]+/g, " ");
  return given.map((name) => {
    const found = metrics.find((metric) => plain(metric.name) === plain(name));
    if (found === undefined)
      throw new UsageError(
        `--metrics: there is no "${name}"; known are ${metrics.map((metric) => metric.name.replaceAll(" ", "-")).join(", ")}`,
      );
    return found.name;
  });
}

const usualLength = 512;

async function measureClasses(
  { place, adapter, tokenizer }: Opened,
  { data, text, label, batch, maxLength, dtype }: Flags,
  ofConfig: readonly string[] | null,
): Promise<Measured> {
  const model = await openModel(place, {
    task: "classification",
    ...(adapter === undefined ? {} : { adapter }),
    ...(dtype === undefined ? {} : { dtype }),
  });
  const regress = model.numLabels === 1;
  const labels = adapter?.labels ?? (regress ? null : ofConfig);
  const read = await readTargets(data, tokenizer, { text, label, regress, labels });
  const task = textTask({ maxLength: maxLength ?? Math.min(model.contextLength, usualLength) });
  const measurement = await measure(model as never, task as never, read.examples as never, {
    ...(batch === undefined ? {} : { batch }),
  });
  return { measurement, examples: read.examples };
}

async function measureLanguage(
  { place, adapter, tokenizer }: Opened,
  { data, text, turns, batch, maxLength: asked, dtype }: Flags,
  wanted: readonly string[] | null,
): Promise<Measured> {
  const model = await openModel(place, {
    task: "generation",
    ...(adapter === undefined ? {} : { adapter }),
    ...(dtype === undefined ? {} : { dtype }),
  });
  const maxLength = asked ?? Math.min(model.contextLength, usualLength);
  const read = await readLanguage(data, tokenizer, { text, turns, maxLength });
  const measurement = await measure(model, languageTask({ maxLength }) as never, read.tokens as never, {
    ...(batch === undefined ? {} : { batch }),
  });
  const columns: Record<string, Float64Array> = {};
  for (const [name, { column, of }] of Object.entries(generated))
    if (wanted?.includes(name)) columns[column] = await of(model, tokenizer, read);
  return { measurement: { ...measurement, examples: { ...measurement.examples, ...columns } }, examples: read.tokens };
}

/** Metrics for which the model has to write: asked for by name, because it takes long. */
const generated: Readonly<
  Record<
    string,
    {
      readonly column: string;
      readonly of: (
        model: Module & LanguageModel,
        tokenizer: ModelTokenizer,
        read: LanguageExamples,
      ) => Promise<Float64Array>;
    }
  >
> = {
  "exact match": { column: "exact", of: exactMatches },
};

/** 1 where the likeliest continuation of a prompt is the completion, but for space around it. */
async function exactMatches(
  model: Module & LanguageModel,
  tokenizer: ModelTokenizer,
  { textual }: LanguageExamples,
): Promise<Float64Array> {
  const out = new Float64Array(textual.length);
  for (const [i, example] of textual.entries()) {
    const { prompt, completion } = await askedOf(example, tokenizer);
    const expected = tokenizer.encode(completion).length;
    const { text } = await streamText(model, tokenizer, prompt, () => {}, {
      maxNewTokens: Math.min(expected + 8, Math.max(1, model.contextLength - prompt.length)),
      temperature: 0,
      stop: [],
    });
    out[i] = text.trim() === completion.trim() ? 1 : 0;
  }
  return out;
}

async function askedOf(
  example: TextualExample,
  tokenizer: ModelTokenizer,
): Promise<{ readonly prompt: number[]; readonly completion: string }> {
  if ("prompt" in example) return { prompt: tokenizer.encodePrompt(example.prompt), completion: example.completion };
  if ("text" in example)
    throw new UsageError(`${example.where}: exact-match needs examples of prompt and completion, or conversations`);
  const last = example.messages.map(({ role }) => role).lastIndexOf("assistant");
  const template = await tokenizer.template();
  const before = template.render(example.messages.slice(0, Math.max(0, last)), {
    addGenerationPrompt: true,
    where: example.where,
  });
  return { prompt: tokenizer.encode(before), completion: example.messages[last]?.content ?? "" };
}

/** Writes evaluation.json, which --compare reads, into a new folder. */
async function keep(
  out: string,
  outcome: object,
  { examples: columns, ...numbers }: Measurement,
  examples: readonly unknown[],
): Promise<void> {
  const plain = Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, Array.from(values)]));
  const print = evaluationPrint(examples);
  await writeWholeFolder(out, (folder) =>
    writeJson(join(folder, "evaluation.json"), {
      ...outcome,
      evaluation: print,
      after: { ...numbers, examples: plain },
    }),
  );
}

/** By which two measurements are known to be of the same examples. */
export const evaluationPrint = (examples: readonly unknown[]): string =>
  fingerprint(
    JSON.stringify(examples, (_, value) => (ArrayBuffer.isView(value) ? Array.from(value as Int32Array) : value)),
  );
