/** The second half of `nabla start`: the GPT that has just been trained learns another kind of text by LoRA. It is a run of `nabla finetune`. */
import { join } from "node:path";
import { writeFileAtomic } from "../formats/atomic.ts";
import { readDeclarations } from "./documentation.ts";
import { runFinetune } from "./finetune-run.ts";
import { settingsOf } from "./finetune-settings.ts";
import type { GptData, GptSettings } from "./gpt-run.ts";

/** How much is learnt: the characters of the second text, those of the first that it is measured on again, and the steps. */
export interface SecondLesson {
  readonly characters: number;
  readonly kept: number;
  readonly steps: number;
  readonly sampleTokens: number;
}

/** Fine-tunes the run in `folder`; the adapter goes to a folder in it. Gives the exit code of the fine-tuning. */
export async function learnDeclarations(
  folder: string,
  { device, context, seed, validationShare }: GptSettings,
  { tokenizer }: GptData,
  documentation: string,
  lesson: SecondLesson,
): Promise<number | undefined> {
  const alphabet = new Set(Array.from({ length: tokenizer.vocabSize }, (_, id) => tokenizer.decode([id])));
  const declarations = join(folder, "declarations.txt");
  const heldOut = join(folder, "documentation-held-out.txt");
  await writeFileAtomic(declarations, readDeclarations(lesson.characters, alphabet));
  const from = Math.ceil((1 - validationShare) * documentation.length);
  await writeFileAtomic(heldOut, documentation.slice(from, from + lesson.kept));
  const out = join(folder, "lora");
  console.log(
    "Now it learns a second kind of text, by LoRA: the declarations of the same package, TypeScript, which it has not seen. In other words\n" +
      `  npx nabla finetune ${folder} --data ${declarations} --also ${heldOut} --rank 8 --lr 5e-3 --steps ${lesson.steps} --out ${out}\n`,
  );
  const settings = settingsOf(folder, {
    data: [declarations],
    also: [heldOut],
    evalShare: 0.1,
    method: "lora",
    rank: 8,
    lr: 5e-3,
    steps: lesson.steps,
    maxLength: context,
    sample: ["function ", "interface "],
    sampleTokens: lesson.sampleTokens,
    device,
    seed,
    ...usual,
  });
  return runFinetune(settings, out, { resume: false, json: false });
}

/** What the flags of `nabla finetune` are by default. */
const usual = {
  task: "language",
  text: "text",
  label: "label",
  turns: "all",
  dropout: 0,
  target: ["all-linear"],
  schedule: "linear",
  warmup: 0.03,
  weightDecay: 0,
  batch: 8,
  accumulate: 1,
  checkpointEvery: 250,
  samples: 2,
} as const;
