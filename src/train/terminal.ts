/**
 * What a run shows in a terminal: a live line on a screen, plain lines now and then in a pipe, a confusion matrix, and
 * numbers as people read them. The loss curve is in `loss-chart.ts`. Nothing here computes anything.
 */
import type { ConfusionMatrix } from "./metrics.ts";
import { environment, screen } from "./screen.ts";

export { type ChartOptions, lossChart, type Point, type Series } from "./loss-chart.ts";

/** A number in three or four figures with its thousands: 999, 12.3k, 4.56M. */
export function formatCount(n: number): string {
  const a = Math.abs(n);
  for (const [size, suffix] of [
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ] as const)
    if (a >= size * 0.9995) return `${figures(n / size, 3)}${suffix}`;
  return Number.isInteger(n) ? String(n) : figures(n, 3);
}

/** `value` in so many figures, without an exponent and without cutting whole digits. */
function figures(value: number, count: number): string {
  if (!Number.isFinite(value)) return String(value);
  const whole = Math.max(1, Math.floor(Math.log10(Math.abs(value) || 1) + 1e-9) + 1);
  return value.toFixed(Math.max(0, Math.min(20, count - whole)));
}

/** A count with what is counted, in the plural where it is not one. */
export const counted = (n: number, what: string, write: (n: number) => string = formatCount): string =>
  `${write(n)} ${what}${n === 1 ? "" : "s"}`;

/** 12.3k tok/s. */
export const formatRate = (perSecond: number, unit: string): string => `${formatCount(perSecond)} ${unit}/s`;

/** Seconds as 350ms, 4.2s, 42s, 1m 20s, 2h 05m, 3d 04h. */
export function formatDuration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "?";
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)}ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)}s`;
  const s = Math.round(seconds);
  const two = (n: number) => String(n).padStart(2, "0");
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m ${two(s % 60)}s`;
  const m = Math.round(seconds / 60);
  if (m < 1440) return `${Math.floor(m / 60)}h ${two(m % 60)}m`;
  const h = Math.round(seconds / 3600);
  return `${Math.floor(h / 24)}d ${two(h % 24)}h`;
}

/** Bytes in powers of 1024: 512 B, 43.2 MiB. */
export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let k = 0;
  for (; k + 1 < units.length && Math.abs(bytes) >= 1023.5; k++) bytes /= 1024;
  return `${k === 0 ? Math.round(bytes) : figures(bytes, 3)} ${units[k]}`;
}

/** A loss in four figures, small ones with an exponent. */
export const formatLoss = (loss: number): string =>
  loss !== 0 && Math.abs(loss) < 1e-3 ? loss.toExponential(2) : figures(loss, 4);

/** What of a stream is used here; process.stdout is one. */
export interface Screen {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  readonly columns?: number;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** Whether to colour what goes there: only on a terminal, and not with NO_COLOR (no-color.org) or TERM=dumb. */
export function usesColor(screen: Screen, env: Environment = environment()): boolean {
  return screen.isTTY === true && !env["NO_COLOR"] && env["TERM"] !== "dumb";
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: escape sequences begin with one
const escapes = /\u001b\[[0-9;]*m/g;
const visibleLength = (text: string) => text.replace(escapes, "").length;

/** What a live line shows. What is undefined is left out. */
export interface Progress {
  readonly step: number;
  readonly loss?: number;
  readonly validationLoss?: number;
  /** Tokens, samples, … a second: see LiveLineOptions.unit. */
  readonly perSecond?: number;
}

export interface LiveLineOptions {
  /** The last step, if it is known: then a bar and the time left are shown. */
  readonly steps?: number;
  /** What `perSecond` counts; "tok" by default. */
  readonly unit?: string;
  /** Seconds between two lines in a pipe; 10 by default. */
  readonly every?: number;
  readonly screen?: Screen;
  readonly env?: Environment;
  /** Milliseconds; performance.now by default. */
  readonly clock?: () => number;
}

const redrawEvery = 80; // milliseconds: smooth for the eye, nothing beside a step
const rateWindow = 30_000; // the time left follows the pace of the last half minute

/**
 * The line of a running training: redrawn in place on a terminal, printed every `every` seconds in a pipe (and first,
 * and last). Call `update` as often as you like, `print` for a line that stays, `end` when done.
 */
export class LiveLine {
  readonly #options: LiveLineOptions;
  readonly #screen: Screen;
  readonly #live: boolean;
  readonly #color: boolean;
  readonly #clock: () => number;
  readonly #pace: { time: number; step: number }[] = [];
  #last: Progress | undefined;
  #shown: Progress | undefined;
  #drawnAt = Number.NEGATIVE_INFINITY;

  constructor(options: LiveLineOptions = {}) {
    this.#options = options;
    this.#screen = options.screen ?? screen();
    const env = options.env ?? environment();
    this.#live = this.#screen.isTTY === true && env["TERM"] !== "dumb";
    this.#color = usesColor(this.#screen, env);
    this.#clock = options.clock ?? (() => performance.now());
  }

  /** Values that are not given are kept from before (a validation loss is measured now and then). */
  update(progress: Progress): void {
    const given = Object.fromEntries(Object.entries(progress).filter(([, value]) => value !== undefined));
    this.#last = { ...this.#last, ...given } as Progress;
    const now = this.#clock();
    const last = this.#pace.at(-1);
    if (last === undefined || now - last.time >= 500) this.#pace.push({ time: now, step: progress.step });
    while (this.#pace.length > 2 && now - this.#pace[1].time > rateWindow) this.#pace.shift();
    if (now - this.#drawnAt < (this.#live ? redrawEvery : 1000 * (this.#options.every ?? 10))) return;
    this.#drawnAt = now;
    this.#draw(this.#last);
  }

  /** Prints text above the line. */
  print(text: string): void {
    this.#screen.write(this.#live && this.#shown !== undefined ? `\r\u001b[K${text}\n` : `${text}\n`);
    if (this.#live && this.#shown !== undefined) this.#draw(this.#last!);
  }

  /** Shows the last state and leaves the line. */
  end(): void {
    if (this.#last !== undefined && (this.#live || this.#shown !== this.#last)) this.#draw(this.#last);
    if (this.#live && this.#shown !== undefined) this.#screen.write("\n");
    this.#last = this.#shown = undefined;
  }

  /** Seconds to the last step at the pace of late; undefined while that can't be said. */
  #secondsLeft(step: number): number | undefined {
    const first = this.#pace[0];
    const elapsed = this.#clock() - first.time;
    if (this.#options.steps === undefined || step <= first.step || elapsed < 500) return undefined;
    return ((this.#options.steps - step) * elapsed) / (step - first.step) / 1000;
  }

  #draw(progress: Progress): void {
    this.#shown = progress;
    const { step, loss, validationLoss, perSecond } = progress;
    const { steps, unit = "tok" } = this.#options;
    const label = (name: string, value: string) => `${this.#color ? `\u001b[2m${name}\u001b[22m` : name} ${value}`;
    const strong = (text: string) => (this.#color ? `\u001b[1m${text}\u001b[22m` : text);
    const parts = [
      label("step", steps === undefined ? String(step) : `${String(step).padStart(String(steps).length)}/${steps}`),
    ];
    if (loss !== undefined) parts.push(label("loss", strong(formatLoss(loss))));
    if (validationLoss !== undefined) parts.push(label("val", strong(formatLoss(validationLoss))));
    if (perSecond !== undefined) parts.push(formatRate(perSecond, unit));
    const left = this.#secondsLeft(step);
    if (left !== undefined && step < steps!) parts.push(label("eta", formatDuration(left)));
    if (!this.#live) {
      this.#screen.write(`${parts.join("  ")}\n`);
      return;
    }
    const room = (this.#screen.columns || 80) - 1;
    const used = () => visibleLength(parts.join("  "));
    const barRoom = Math.min(24, room - used() - 2);
    if (steps !== undefined && steps > 0 && barRoom >= 6) parts.splice(1, 0, bar(step / steps, barRoom, this.#color));
    while (parts.length > 1 && used() > room) parts.pop(); // a narrow terminal: a line that wraps can't be redrawn
    const line = parts.join("  ");
    this.#screen.write(`\r${visibleLength(line) > room ? line.replace(escapes, "").slice(0, room) : line}\u001b[K`);
  }
}

/** A progress bar with eighths of a character. */
function bar(share: number, width: number, color: boolean): string {
  const eighths = Math.round(Math.min(1, Math.max(0, share)) * width * 8);
  const full = "█".repeat(eighths >> 3) + (eighths & 7 ? " ▏▎▍▌▋▊▉"[eighths & 7] : "");
  const rest = "·".repeat(width - full.length);
  return color ? `\u001b[36m${full}\u001b[2m${rest}\u001b[22;39m` : full + rest;
}

export interface ConfusionOptions {
  /** Names of the classes; their numbers by default. */
  readonly labels?: readonly string[];
  /** Columns of the terminal; 100 by default. A wider matrix is shown as its largest confusions. */
  readonly width?: number;
  readonly color?: boolean;
}

/** A confusion matrix as text: a row a true class with its recall at the end, a column a predicted one. */
export function formatConfusionMatrix({ classes, counts }: ConfusionMatrix, options: ConfusionOptions = {}): string {
  const { width = 100, color = false } = options;
  const labels = Array.from({ length: classes }, (_, c) => options.labels?.[c] ?? String(c));
  const row = (c: number) => Array.from(counts.subarray(c * classes, (c + 1) * classes));
  const recall = (c: number) => {
    const all = row(c).reduce((a, b) => a + b, 0);
    return all === 0 ? "—" : `${((100 * counts[c * classes + c]) / all).toFixed(1)}%`;
  };
  const head = "true\\pred";
  const first = Math.max(head.length, ...labels.map((l) => l.length));
  const cell = 2 + Math.max(...labels.map((l) => l.length), ...Array.from(counts, (n) => String(n).length));
  if (first + cell * classes + 9 > width) return largestConfusions(classes, counts, labels);
  const paint = (text: string, code: string) => (color ? `\u001b[${code}m${text}\u001b[0m` : text);
  const lines = [head.padEnd(first) + labels.map((l) => l.padStart(cell)).join("") + "recall".padStart(9)];
  for (let c = 0; c < classes; c++) {
    const cells = row(c).map((n, k) => {
      const text = (n === 0 ? "·" : String(n)).padStart(cell);
      return k === c ? paint(text, "1;32") : n === 0 ? paint(text, "2") : paint(text, "31");
    });
    lines.push(labels[c].padEnd(first) + cells.join("") + recall(c).padStart(9));
  }
  return lines.join("\n");
}

function largestConfusions(classes: number, counts: Float64Array, labels: readonly string[]): string {
  const wrong = Array.from(counts, (n, i) => ({ n, truth: Math.floor(i / classes), predicted: i % classes }))
    .filter(({ n, truth, predicted }) => n > 0 && truth !== predicted)
    .sort((a, b) => b.n - a.n);
  if (wrong.length === 0) return `${classes} classes, none confused with another`;
  const shown = wrong
    .slice(0, 20)
    .map(({ n, truth, predicted }) => `${String(n).padStart(7)}  ${labels[truth]} taken for ${labels[predicted]}`);
  return [`the largest of ${wrong.length} confusions among ${classes} classes:`, ...shown].join("\n");
}
