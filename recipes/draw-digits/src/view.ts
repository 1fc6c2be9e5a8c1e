/** The elements of the page, and what is written into them. It knows what is shown, not what is done. */
import { drawBars, drawCurve, drawMatrix } from "./charts.ts";
import type { Point } from "./curve.ts";
import type { Device } from "./devices.ts";
import { accuracyOf } from "./model.ts";
import type { Phase, Session } from "./session.ts";

const byId = <E extends Element>(id: string): E => document.getElementById(id) as unknown as E;

const trainButton = byId<HTMLButtonElement>("train");
const anewButton = byId<HTMLButtonElement>("anew");
const deviceSelect = byId<HTMLSelectElement>("device");
const absent = byId<HTMLElement>("absent");
const status = byId<HTMLElement>("status");
const progress = byId<HTMLProgressElement>("progress");
const failure = byId<HTMLElement>("failure");
const mendButton = byId<HTMLButtonElement>("mend");
export const sheet = byId<HTMLCanvasElement>("sheet");

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
const whole = (n: number): string => n.toLocaleString("en");

/** Writes only what is new: a screen reader says again what is written again. */
function write(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}
const say = (text: string): void => write(status, text);

/** A bar that is filled to `share`, that moves where nobody knows how far it is ("unknown"), or that is away ("none"). */
function showProgress(share: number | "unknown" | "none"): void {
  progress.classList.toggle("still", share === "none");
  if (typeof share === "number") progress.value = share;
  else progress.removeAttribute("value");
}

// ---- what the user does ------------------------------------------------------------------------------------------------

export const onTrain = (act: () => void): void => trainButton.addEventListener("click", act);
export const onAnew = (act: () => void): void => anewButton.addEventListener("click", act);
export const onClear = (act: () => void): void => byId("clear").addEventListener("click", act);
export const onDevice = (act: () => void): void => deviceSelect.addEventListener("change", act);
export const chosenDevice = (): string => deviceSelect.value;

// ---- before training ---------------------------------------------------------------------------------------------------

export function showDevices(devices: readonly Device[]): void {
  const options = devices.map(({ name, label, absent }) => {
    const option = new Option(label, name);
    option.disabled = absent !== null;
    return option;
  });
  deviceSelect.replaceChildren(...options);
  deviceSelect.value = devices.find(({ absent }) => absent === null)?.name ?? "";
  const reasons = devices.flatMap(({ label, absent }) => (absent === null ? [] : [`No ${label}: ${absent}.`]));
  write(absent, reasons.join(" "));
  absent.hidden = reasons.length === 0;
}

const megabytes = (bytes: number): string => (bytes / 1e6).toFixed(1);

export function showLoading(loaded: number, total: number | null): void {
  say("Loading the digits …");
  write(byId("waiting"), total === null ? `${megabytes(loaded)} MB` : `${megabytes(loaded)} of ${megabytes(total)} MB`);
  showProgress(total === null ? "unknown" : loaded / total);
}

/** All is there: training can begin, or go on from what was saved. */
export function showReady(saved: { readonly step: number; readonly accuracy: number | null } | null): void {
  showProgress("none");
  trainButton.disabled = deviceSelect.disabled = false;
  anewButton.hidden = saved === null;
  if (!saved) {
    say("Ready to train on 60,000 digits.");
    return;
  }
  const accuracy = saved.accuracy === null ? "" : ` (${percent(saved.accuracy)})`;
  write(trainButton, `Continue from step ${whole(saved.step)}${accuracy}`);
  say("A run was saved here.");
}

// ---- training ----------------------------------------------------------------------------------------------------------

export function showTraining(running: boolean): void {
  write(trainButton, running ? "Pause" : "Continue");
  trainButton.disabled = false;
  anewButton.hidden = running;
}

/** What is going on beside the steps, and how long it has taken. */
const asides: Readonly<Record<Phase, string>> = {
  idle: "",
  preparing: "compiling the kernels",
  training: "",
  evaluating: "reading digits that it does not train on",
  saving: "saving",
};

/** How often the accuracy is told in words, for those who can't see the numbers, in milliseconds. */
const toldEvery = 5000;
let told = 0;

function tell({ phase, step, device, matrix }: Session): void {
  if (phase === "idle") say(step === 0 ? "Ready." : `Paused at step ${whole(step)}.`);
  else if (phase === "preparing") say(`Preparing ${device === "webgpu" ? "WebGPU" : "WebAssembly"} …`);
  else say("Training …");
  if (phase === "idle" || !matrix || performance.now() - told < toldEvery) return;
  told = performance.now();
  write(byId("told"), `Step ${whole(step)}: right on ${percent(accuracyOf(matrix))} of the digits held out.`);
}

/** What was shown last, to be drawn again where the page becomes narrower or wider. */
let shown: Session | null = null;
let began: { readonly phase: Phase | null; readonly time: number } = { phase: null, time: 0 };
let drawn = 0;
let lastStep = { step: 0, time: 0 };
let speed = 0;

/** Shows a run as it is: at once where it does something else, else a few times a second. */
export function showSession(session: Session): void {
  const { phase, step } = session;
  shown = session;
  if (began.phase !== phase) began = { phase, time: performance.now() };
  tell(session);
  showWaiting();
  if (phase === "idle") showProgress("none");
  else if (phase !== "training" || progress.classList.contains("still")) showProgress("unknown");
  const now = performance.now();
  if (phase === "training" && now - drawn < 250) return;
  drawn = now;
  measureSpeed(phase, step, now);
  showNumbers(session);
}

/** The seconds that something takes which shows nothing else. */
function showWaiting(): void {
  if (began.phase === null) return; // the digits are still being loaded
  const aside = asides[began.phase];
  const seconds = Math.floor((performance.now() - began.time) / 1000);
  write(byId("waiting"), aside !== "" && seconds > 0 ? `${aside}, ${seconds} s` : aside);
}
setInterval(showWaiting, 1000);
addEventListener("resize", () => (shown ? showNumbers(shown) : draw([], [], null)));
draw([], [], null);

function measureSpeed(phase: Phase, step: number, now: number): void {
  if (phase === "training" && step > lastStep.step && now > lastStep.time) {
    const recent = (1000 * (step - lastStep.step)) / (now - lastStep.time);
    speed = speed === 0 ? recent : 0.8 * speed + 0.2 * recent;
  } else if (phase === "preparing") speed = 0;
  lastStep = { step, time: now };
  write(byId("speed"), phase === "idle" || speed === 0 ? "–" : speed.toFixed(speed < 10 ? 1 : 0));
}

function showNumbers({ step, loss, accuracy, matrix }: Session): void {
  write(byId("steps"), whole(step));
  const latest = loss.points.at(-1);
  write(byId("loss"), latest ? latest.value.toFixed(3) : "–");
  write(byId("accuracy"), matrix ? percent(accuracyOf(matrix)) : "–");
  draw(loss.points, accuracy.points, matrix);
}

function draw(loss: readonly Point[], accuracy: readonly Point[], matrix: Uint32Array | null): void {
  drawCurve(byId("loss-chart"), loss, {
    title: "Loss",
    ticks: [0, 0.5, 1, 1.5, 2, 2.5],
    format: (value) => value.toFixed(1),
  });
  drawCurve(byId("accuracy-chart"), accuracy, {
    title: "Accuracy",
    ticks: [0.5, 0.6, 0.7, 0.8, 0.9, 1],
    format: (value) => `${Math.round(100 * value)} %`,
  });
  drawMatrix(byId("matrix"), matrix);
}

// ---- the drawing -------------------------------------------------------------------------------------------------------

/** What the network says of the drawing; "reading" before the first answer, null for an empty sheet. */
export function showAnswer(answer: readonly number[] | "reading" | null, step: number): void {
  if (answer !== "reading") drawBars(byId("bars"), answer);
  write(byId("answer"), answer === null ? invitation : answer === "reading" ? "Reading …" : inWords(answer, step));
}

const invitation = "Draw with a mouse, a finger or a pen.";

function inWords(probabilities: readonly number[], step: number): string {
  const best = Math.max(...probabilities);
  const digit = probabilities.indexOf(best);
  if (step === 0) return `A guess: ${digit}. It has not been trained.`;
  return best >= 0.8 ? `That is a ${digit}.` : best >= 0.5 ? `Probably a ${digit}.` : `Perhaps a ${digit}?`;
}

// ---- what goes wrong ---------------------------------------------------------------------------------------------------

let mend: () => void = () => {};
mendButton.addEventListener("click", () => mend());

/** Whether there is a device beside the one that is chosen. */
export const hasOtherDevice = (): boolean => [...deviceSelect.options].some((o) => !o.disabled && !o.selected);

/** What has gone wrong and what to do, the error's own words, and a button that does it. Until then nothing can be trained. */
export function showFailure(text: string, error: Error, button: string, action: () => void): void {
  write(byId("failure-text"), text);
  write(byId("failure-detail"), error.message);
  write(mendButton, button);
  mend = action;
  failure.hidden = false;
  if (document.activeElement === trainButton) mendButton.focus();
  trainButton.disabled = true;
  anewButton.hidden = true;
  say("Stopped.");
  write(byId("waiting"), "");
  showProgress("none");
}

export function hideFailure(): void {
  failure.hidden = true;
}

/** Something that its user should know, but that stops nothing. */
export function showNote(text: string): void {
  write(absent, text);
  absent.hidden = false;
}
