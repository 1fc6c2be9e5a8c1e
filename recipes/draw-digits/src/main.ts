/** The page: puts what happens on the screen, and what its user wants into action. */
import type { Source } from "nabla/formats";
import { findDevices } from "./devices.ts";
import { type DigitSets, loadDigits } from "./digits.ts";
import { Drawing } from "./drawing.ts";
import { accuracyOf } from "./model.ts";
import { normalise } from "./normalise.ts";
import { Recogniser } from "./recogniser.ts";
import { path } from "./saved.ts";
import { Session } from "./session.ts";
import * as view from "./view.ts";

const heldOut = 2000;

let digits: DigitSets;
let session: Session | null = null;
let running: Promise<void> | null = null;

const recogniser = new Recogniser((answer) => view.showAnswer(answer, session?.step ?? 0));
const drawing = new Drawing(view.sheet, (strokes) => recogniser.read(session?.trainer, normalise(strokes)));

const events = {
  changed: view.showSession,
  notSaved: (reason: Error) =>
    view.showNote(`The run can be continued only until this page is left: ${reason.message}`),
};

/** Makes a run ready, from the start or from where it was saved. */
async function open(source: Source | null): Promise<Session> {
  session = await Session.open(view.chosenDevice(), digits, source, events);
  view.showSession(session);
  return session;
}

async function train(session: Session): Promise<void> {
  view.showTraining(true);
  running = session.run();
  try {
    await running;
    recogniser.again(session.trainer);
  } catch (error) {
    const { saved, step } = session;
    const kept = saved ? `What it had learnt up to step ${saved.step} is saved.` : "Nothing had been saved yet.";
    const what = `Training stopped at step ${step}: ${(error as Error).message}. ${kept}`;
    view.showFailure(`${what} Reload the page, or choose another device.`, "Reload", () => location.reload());
  } finally {
    running = null;
    view.showTraining(false);
  }
}

async function pause(): Promise<void> {
  session?.pause();
  await running?.catch(() => {});
}

view.onTrain(() => {
  if (running) void pause();
  else if (session) void train(session);
});
view.onClear(() => drawing.clear());
view.onAnew(async () => {
  await pause();
  await train(await open(null));
});
view.onDevice(async () => {
  const wasRunning = running !== null;
  await pause();
  view.hideFailure();
  // after a failure the device can't be asked for anything: then it is what was saved last
  const opened = await open(session?.saved?.source ?? null);
  if (wasRunning) await train(opened);
});
// a page that is left or put away may not come back
addEventListener("pagehide", () => session?.saveSoon());
document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && session?.saveSoon());

async function start(): Promise<void> {
  view.hideFailure();
  view.showAnswer(null, 0);
  try {
    view.showDevices(await findDevices());
    digits = await loadDigits("digits", heldOut, view.showLoading);
  } catch (error) {
    const what = `The digits could not be loaded: ${(error as Error).message}.`;
    view.showFailure(what, "Try again", () => void start());
    return;
  }
  let opened: Session;
  try {
    opened = await open(path);
  } catch (error) {
    view.showNote(`The run that was saved here can't be continued: ${(error as Error).message}`);
    opened = await open(null);
  }
  const accuracy = opened.matrix && accuracyOf(opened.matrix);
  view.showReady(opened.step > 0 ? { step: opened.step, accuracy } : null);
}
void start();
