/** The page: puts what happens on the screen, and what its user wants into action. */
import { type Device, findDevices } from "./devices.ts";
import { type DigitSets, loadDigits } from "./digits.ts";
import { Drawing } from "./drawing.ts";
import { accuracyOf } from "./model.ts";
import { normalise } from "./normalise.ts";
import { Recogniser } from "./recogniser.ts";
import { Session } from "./session.ts";
import { load, type Snapshot, save } from "./snapshot.ts";
import * as view from "./view.ts";

const heldOut = 2000;

let digits: DigitSets;
let session: Session;
/** The last state that was saved, or is being saved. */
let saved: Snapshot | null = null;
let running: Promise<void> | null = null;

const recogniser = new Recogniser((answer) => view.showAnswer(answer, session?.step ?? 0));
const drawing = new Drawing(view.sheet, (strokes) => recogniser.read(session?.trainer, normalise(strokes)));

async function keep(snapshot: Promise<Snapshot>): Promise<void> {
  try {
    saved = await snapshot;
    await save(saved);
  } catch (error) {
    view.showNote(`The state could not be saved here: ${(error as Error).message}`);
  }
}

/** Shows what went wrong, and offers a way on. */
function fail(what: string, error: unknown, mend: string, action: () => void): void {
  console.error(error);
  view.showFailure(`${what} ${(error as Error).message}`, mend, action);
}

function open(device: string, snapshot: Snapshot | null): void {
  session = new Session(device, digits, snapshot, {
    changed: (session) => view.showSession(session, device),
    save: (snapshot) => void keep(snapshot),
  });
  view.showSession(session, device);
}

async function train(): Promise<void> {
  view.showTraining(true);
  try {
    await (running = session.run());
    recogniser.again(session.trainer);
  } catch (error) {
    const safe = saved ? `What it had learnt up to step ${saved.step} is saved.` : "Nothing had been saved yet.";
    const what = `Training stopped at step ${session.step}, because the device failed. ${safe} Reload the page to go on from there, or choose another device.`;
    fail(what, error, "Reload the page", () => location.reload());
  } finally {
    running = null;
    view.showTraining(false);
  }
}

async function pause(): Promise<void> {
  session.pause();
  await running?.catch(() => {});
}

view.onTrain(() => (running ? void pause() : void train()));
view.onClear(() => drawing.clear());
view.onAnew(async () => {
  await pause();
  saved = null;
  open(view.chosenDevice(), null);
  await train();
});
view.onDevice(async (device) => {
  const wasRunning = running !== null;
  await pause();
  view.hideFailure();
  // after a failure the device can't be asked: then it is what was saved last
  const snapshot = await session.snapshot().catch(() => saved);
  open(device, snapshot);
  if (wasRunning) await train();
});
// a page that is left or put away may not come back
const leave = (): void => {
  if (session?.step > 0 && running) void keep(session.snapshot());
};
addEventListener("pagehide", leave);
document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && leave());

async function start(): Promise<void> {
  view.hideFailure();
  view.showAnswer(null, 0);
  let devices: Device[];
  try {
    devices = await findDevices();
    view.showDevices(devices);
    digits = await loadDigits("digits", heldOut, view.showLoading);
  } catch (error) {
    fail("The digits could not be loaded; is there a connection?", error, "Try again", () => void start());
    return;
  }
  saved = await load().catch(() => null);
  open(view.chosenDevice(), saved);
  const accuracy = saved?.matrix ? accuracyOf(Uint32Array.from(saved.matrix)) : null;
  view.showReady(saved && { step: saved.step, accuracy });
}
void start();
