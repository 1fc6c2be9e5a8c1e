/** nabla train gpt, at work: a new run from its flags, or one that is gone on with. */
import { resolve } from "node:path";
import { openDevice } from "./device.ts";
import { exitCodes } from "./exit.ts";
import { describeRun, type GptSettings, prepareData, report, sessionOf, trainRun } from "./gpt-run.ts";
import type { Outcome } from "./main.ts";
import { readSettings, startRun } from "./run-folder.ts";
import { lockRun } from "./run-lock.ts";
import { isFinished, sayWhereItGoesOn } from "./session.ts";
import type { GptFlags } from "./train.ts";

export async function trainGpt(flags: GptFlags, checkpointEveryGiven: boolean): Outcome {
  return flags.resume === undefined ? startNew(flags, flags.out!) : goOn(flags, flags.resume, checkpointEveryGiven);
}

/** The settings that flags amount to. */
export function settingsOf(flags: GptFlags, device: string): GptSettings {
  const { layers, width, heads, context, dropout, tokenizer, vocab, batch, accumulate, steps, lr, weightDecay } = flags;
  const { beta2, clip, validationShare, validateEvery, checkpointEvery, seed } = flags;
  return {
    format: 1,
    kind: "gpt",
    device,
    seed,
    data: (flags.data ?? []).map((path) => resolve(path)),
    checkpointEvery,
    ...{ layers, width, heads, context, dropout, tokenizer, vocab, batch, accumulate, steps, lr },
    minLr: Math.min(flags.minLr ?? lr / 10, lr),
    warmup: Math.min(flags.warmup ?? Math.min(100, Math.floor(steps / 20)), steps - 1),
    ...{ weightDecay, beta2, clip, validationShare, validateEvery },
    precision: flags.precision,
  };
}

async function startNew(flags: GptFlags, folder: string): Outcome {
  const device = await openDevice(flags.device);
  const settings = settingsOf(flags, device);
  const data = await startRun(folder, settings, () => prepareData(folder, settings));
  console.log(describeRun(settings, data, device));
  const session = sessionOf(folder, settings, { resume: false, detectAnomaly: flags.detectAnomaly ?? false });
  return await report(session, settings, data, await trainRun(session, settings, data));
}

async function goOn(flags: GptFlags, folder: string, checkpointEveryGiven: boolean): Outcome {
  const settings = readSettings<GptSettings>(folder, "gpt");
  if (isFinished(folder)) return exitCodes.ok;
  lockRun(folder);
  const device = await openDevice(settings.device);
  const data = await prepareData(folder, settings);
  console.log(describeRun(settings, data, device));
  await sayWhereItGoesOn(folder);
  const session = sessionOf(folder, settings, {
    resume: true,
    ...(checkpointEveryGiven ? { checkpointEvery: flags.checkpointEvery } : {}),
    detectAnomaly: flags.detectAnomaly ?? false,
  });
  return await report(session, settings, data, await trainRun(session, settings, data));
}
