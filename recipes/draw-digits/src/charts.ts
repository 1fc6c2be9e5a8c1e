/** What is drawn of the numbers: curves, the confusion matrix, the bars of ten probabilities. */
import type { Point } from "./curve.ts";

const svg = (name: string, attributes: Readonly<Record<string, string | number>>, text = ""): SVGElement => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  element.textContent = text;
  return element;
};

const html = <K extends keyof HTMLElementTagNameMap>(name: K, text = "", className = ""): HTMLElementTagNameMap[K] => {
  const element = document.createElement(name);
  element.textContent = text;
  if (className) element.className = className;
  return element;
};

interface ChartOptions {
  /** What the curve shows, for those who can't see it. */
  readonly title: string;
  /** The values at the lines of the scale, from below. */
  readonly ticks: readonly number[];
  readonly format: (value: number) => string;
}

/** Draws points over their steps into an `<svg>`. Points out of the scale are drawn at its edge. */
export function drawCurve(
  chart: SVGSVGElement,
  points: readonly Point[],
  { title, ticks, format }: ChartOptions,
): void {
  const { width = 320, height = 150 } = { width: chart.clientWidth || 320, height: chart.clientHeight || 150 };
  const [left, right, top, bottom] = [44, width - 8, 10, height - 24];
  const [low, high] = [ticks[0], ticks.at(-1) as number];
  const lastStep = Math.max(100, points.at(-1)?.step ?? 0);
  const x = (step: number): number => left + ((right - left) * step) / lastStep;
  const y = (value: number): number =>
    bottom - ((bottom - top) * (Math.min(high, Math.max(low, value)) - low)) / (high - low);
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const latest = points.at(-1);
  chart.setAttribute(
    "aria-label",
    latest ? `${title}: ${format(latest.value)} at step ${latest.step}` : `${title}: nothing yet`,
  );
  const scale = ticks.flatMap((tick) => [
    svg("line", { x1: left, x2: right, y1: y(tick), y2: y(tick), class: "rule" }),
    svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, format(tick)),
  ]);
  const steps = [
    svg("text", { x: left, y: height - 6 }, "0"),
    svg("text", { x: right, y: height - 6, "text-anchor": "end" }, `step ${lastStep.toLocaleString("en")}`),
  ];
  const line = points.map(({ step, value }) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const marks = latest ? [svg("circle", { cx: x(latest.step), cy: y(latest.value), r: 3.5, class: "latest" })] : [];
  chart.replaceChildren(...scale, ...steps, svg("polyline", { points: line, class: "curve" }), ...marks);
}

/** Fills a table with counts [10 × 10]: a row for what digits are, a column for what was read. */
export function drawMatrix(table: HTMLTableElement, counts: Uint32Array | null): void {
  const body = table.tBodies[0];
  const rows = Array.from({ length: 10 }, (_, digit) => {
    const row = html("tr");
    const head = html("th", String(digit));
    head.scope = "row";
    const cells = Array.from({ length: 10 }, (_, read) => {
      const count = counts ? counts[digit * 10 + read] : 0;
      const cell = html("td", count > 0 ? String(count) : "", digit === read ? "right" : "wrong");
      const total = counts ? counts.subarray(digit * 10, digit * 10 + 10).reduce((sum, n) => sum + n, 0) : 0;
      cell.style.setProperty("--share", total > 0 ? String(count / total) : "0");
      return cell;
    });
    row.append(head, ...cells);
    return row;
  });
  body.replaceChildren(...rows);
}

/** Shows ten probabilities as bars in a list; null empties them. */
export function drawBars(list: HTMLElement, probabilities: readonly number[] | null): void {
  if (list.children.length === 0)
    for (let digit = 0; digit < 10; digit++) {
      const item = html("li");
      item.append(html("span", String(digit), "digit"), html("span", "", "bar"), html("span", "", "percent"));
      list.append(item);
    }
  const best = probabilities ? probabilities.indexOf(Math.max(...probabilities)) : -1;
  for (const [digit, item] of [...list.children].entries()) {
    const share = probabilities?.[digit] ?? 0;
    item.classList.toggle("best", digit === best);
    (item.children[1] as HTMLElement).style.setProperty("--share", String(share));
    item.children[2].textContent = probabilities ? `${Math.round(100 * share)} %` : "";
  }
}
