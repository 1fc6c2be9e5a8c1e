/**
 * A loss curve as text: braille dots (2 × 4 to a character) between two labelled axes, or plain characters where a
 * terminal has no Unicode. It draws whatever series it is given; colours only if asked.
 */

/** [step, value] */
export type Point = readonly [number, number];

export interface Series {
  readonly name: string;
  readonly points: readonly Point[];
}

export interface ChartOptions {
  /** Characters in all; 76 and 16 by default. */
  readonly width?: number;
  readonly height?: number;
  readonly color?: boolean;
  /** Plain ASCII instead of braille and box characters. */
  readonly ascii?: boolean;
  readonly xLabel?: string;
  readonly yLabel?: string;
}

const colors = [36, 33, 35, 32];
const markers = ["o", "x", "+", "#"]; // of the second series and further: they are drawn as single points
const dotBits = [
  [0x01, 0x08],
  [0x02, 0x10],
  [0x04, 0x20],
  [0x40, 0x80],
];

/** Round numbers between low and high, about `count` of them (1, 2 or 5 times a power of ten apart). */
function ticks(low: number, high: number, count: number): number[] {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999)!;
  const out: number[] = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++)
    out.push(Number((k * step).toPrecision(12)));
  return out;
}

/** A tick's text, with as many decimals as its neighbours need to differ. */
function tickText(values: readonly number[]): string[] {
  const gap = values.length > 1 ? Math.abs(values[1] - values[0]) : Math.abs(values[0]) || 1;
  if (gap < 1e-4 || values.some((v) => Math.abs(v) >= 1e7)) return values.map((v) => v.toExponential(1));
  const decimals = Math.max(0, -Math.floor(Math.log10(gap) + 1e-9));
  return values.map((v) => v.toFixed(decimals));
}

/** The points' means over as many columns of dots as there are: what one dot can show. */
function averaged(points: readonly Point[], column: (x: number) => number): Point[] {
  const sums = new Map<number, { x: number; y: number; n: number }>();
  for (const [x, y] of points) {
    const c = column(x);
    const sum = sums.get(c) ?? { x: 0, y: 0, n: 0 };
    sum.x += x;
    sum.y += y;
    sum.n++;
    sums.set(c, sum);
  }
  return [...sums].sort(([a], [b]) => a - b).map(([, { x, y, n }]) => [x / n, y / n]);
}

/**
 * Draws a curve, or several: the first as a line, further ones (validation losses) as single marks. Values that are not
 * finite are left out. Returns lines joined by newlines.
 */
export function lossChart(data: readonly Point[] | readonly Series[], options: ChartOptions = {}): string {
  const { width = 76, height = 16, color = false, ascii = false, xLabel = "step", yLabel = "loss" } = options;
  const given =
    data.length > 0 && "points" in data[0]
      ? (data as readonly Series[])
      : [{ name: yLabel, points: data as readonly Point[] }];
  const series = given.map(({ name, points }) => ({
    name,
    points: points.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y)),
  }));
  const all = series.flatMap(({ points }) => points);
  if (all.length === 0) return `(no ${yLabel} to draw yet)`;
  const range = (k: 0 | 1): [number, number] => {
    let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
    for (const point of all) {
      low = Math.min(low, point[k]);
      high = Math.max(high, point[k]);
    }
    const size = Math.max(Math.abs(low), Math.abs(high));
    if (!(high - low > size * 1e-9) || size < 1e-30) {
      const pad = size < 1e-30 ? 1 : size * 0.1; // one value: put it in the middle
      return k === 0 ? [low, low + 1] : [low - pad, high + pad];
    }
    return [low, high];
  };
  const [x0, x1] = range(0);
  const [y0, y1] = range(1);

  const rows = Math.max(3, height - 3); // a title above, an axis and its labels below
  const yTicks = ticks(y0, y1, Math.max(2, Math.floor(rows / 3)));
  const yTexts = tickText(yTicks);
  const margin = Math.max(...yTexts.map((t) => t.length));
  const columns = Math.max(10, width - margin - 2);
  const [perColumn, perRow] = ascii ? [1, 1] : [2, 4];
  const [dotsX, dotsY] = [columns * perColumn, rows * perRow];
  const dotX = (x: number) => Math.round(((x - x0) / (x1 - x0)) * (dotsX - 1));
  const dotY = (y: number) => Math.round(((y1 - y) / (y1 - y0)) * (dotsY - 1));

  const dots = new Uint8Array(rows * columns); // braille bits, or 1, of the first series
  const marks = new Uint8Array(rows * columns); // 1 + number of the further series seen here
  const cell = (dx: number, dy: number) => Math.floor(dy / perRow) * columns + Math.floor(dx / perColumn);
  const put = (dx: number, dy: number) => {
    dots[cell(dx, dy)] |= ascii ? 1 : dotBits[dy % 4][dx % 2];
  };
  let before: readonly [number, number] | undefined;
  for (const [x, y] of averaged(series[0].points, dotX)) {
    const [bx, by] = [dotX(x), dotY(y)];
    const [ax, ay] = before ?? [bx, by];
    const n = Math.max(Math.abs(bx - ax), Math.abs(by - ay), 1);
    for (let i = 0; i <= n; i++) put(Math.round(ax + ((bx - ax) * i) / n), Math.round(ay + ((by - ay) * i) / n));
    before = [bx, by];
  }
  series.slice(1).forEach(({ points }, k) => {
    for (const [x, y] of points) marks[cell(dotX(x), dotY(y))] = k + 1;
  });

  const paint = (text: string, which: number) =>
    color ? `\u001b[${colors[which % colors.length]}m${text}\u001b[39m` : text;
  const [vertical, corner, horizontal, tickLeft, tickDown] = ascii
    ? ["|", "+", "-", "+", "+"]
    : ["│", "└", "─", "┤", "┬"];
  const yTickRows = new Map(yTicks.map((y, i) => [Math.floor(dotY(y) / perRow), yTexts[i]]));
  const legend =
    series.length === 1
      ? yLabel
      : series
          .map(({ name }, k) => `${paint(k === 0 ? (ascii ? "*" : "⠒⠒") : markers[(k - 1) % 4], k)} ${name}`)
          .join("   ");
  const lines = [`${" ".repeat(margin + 2)}${legend}`];
  for (let row = 0; row < rows; row++) {
    let text = "";
    for (let c = 0; c < columns; c++) {
      const at = row * columns + c;
      if (marks[at] > 0) text += paint(markers[(marks[at] - 1) % 4], marks[at]);
      else if (dots[at] === 0) text += " ";
      else text += paint(ascii ? "*" : String.fromCharCode(0x2800 + dots[at]), 0);
    }
    const label = yTickRows.get(row);
    lines.push(`${(label ?? "").padStart(margin)} ${label === undefined ? vertical : tickLeft}${text}`.trimEnd());
  }

  // The x axis: ticks where round steps are, their numbers below, the axis' name at the end.
  const xTicks = ticks(x0, x1, Math.max(2, Math.floor(columns / 14))).filter(
    (x) => Number.isInteger(x) || !all.every(([v]) => Number.isInteger(v)),
  );
  const axis = new Array<string>(columns).fill(horizontal);
  const below = new Array<string>(columns + 8).fill(" ");
  const name = ` ${xLabel}`;
  const room = columns - name.length;
  tickText(xTicks).forEach((text, i) => {
    const c = Math.floor(dotX(xTicks[i]) / perColumn);
    const start = Math.min(Math.max(0, c - Math.floor(text.length / 2)), room - text.length);
    axis[c] = tickDown;
    if (start < 0 || below.slice(Math.max(0, start - 1), start + text.length + 1).some((ch) => ch !== " ")) return;
    for (let k = 0; k < text.length; k++) below[start + k] = text[k];
  });
  for (let k = 0; k < name.length; k++) below[room + k] = name[k];
  lines.push(
    `${" ".repeat(margin + 1)}${corner}${axis.join("")}`,
    `${" ".repeat(margin + 2)}${below.join("").trimEnd()}`,
  );
  return lines.join("\n");
}
