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

const recogniser = new Recogniser((answer) => view.showAnswer(answer, session?.step ?? 0), deviceFailed);
const drawing = new Drawing(view.sheet, (strokes) => recogniser.read(session?.trainer, normalise(strokes)));

const events = {
  changed(session: Session) {
    view.showSession(session);
    if (session.phase === "evaluating") recogniser.again(session.trainer); // it has learnt something since
  },
  notSaved: (reason: Error) =>
    view.showNote(`The run can be continued only until this page is left: ${reason.message}`),
};

/** Makes a run ready, from the start or from where it was saved. */
async function open(source: Source | null): Promise<Session> {
  session = await Session.open(view.chosenDevice(), digits, source, events);
  view.showSession(session);
  recogniser.again(session.trainer);
  return session;
}

/** The device is lost, or can't do it. Its memory is gone; what was saved last is not. */
function deviceFailed(error: Error): void {
  const saved = session?.saved;
  const kept = saved ? `What it had learnt up to step ${saved.step} is saved: ` : "Nothing had been saved yet: ";
  const others = view.hasOtherDevice() ? ", or choose another device" : "";
  const what = `The device has failed at step ${session?.step}. ${kept}reload the page to go on from there${others}.`;
  view.showFailure(what, error, "Reload", () => location.reload());
}

async function train(session: Session): Promise<void> {
  view.showTraining(true);
  running = session.run();
  try {
    await running;
    view.showTraining(false);
    recogniser.again(session.trainer);
  } catch (error) {
    view.showTraining(false);
    deviceFailed(error as Error);
  } finally {
    running = null;
  }
}

async function pause(): Promise<void> {
  session?.pause();
  await running?.catch(() => {});
}

/** Pauses, makes another run ready, and trains it where `trains` says so. */
async function change(source: () => Source | null, trains: boolean): Promise<void> {
  await pause();
  try {
    const opened = await open(source());
    view.hideFailure();
    view.showTraining(false);
    if (trains) await train(opened);
  } catch (error) {
    deviceFailed(error as Error);
  }
}

view.onTrain(() => {
  if (running) void pause();
  else if (session) void train(session);
});
view.onClear(() => drawing.clear());
view.onAnew(() => void change(() => null, true));
// after a failure the device can't be asked for what it holds, so it is what was saved last, at the pause if all is well
view.onDevice(() => void change(() => session?.saved?.source ?? null, running !== null));
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
    const what = "The digits could not be loaded. Is there a connection?";
    view.showFailure(what, error as Error, "Try again", () => void start());
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
