/**
 * A directed graph as an SVG, in layers from top to bottom (Sugiyama, Tagawa and Toda 1981): nodes stand below their inputs, long
 * edges go through empty places, neighbours are ordered by the mean place of what they are joined to. No general drawing tool.
 */

export interface Box {
  readonly title: string;
  readonly subtitle: string;
  readonly color: string;
  /** Indices of boxes whose edges come in. */
  readonly inputs: readonly number[];
}

interface Place {
  /** −1 for a bend of a long edge. */
  readonly box: number;
  readonly layer: number;
  readonly width: number;
  x: number;
  readonly above: number[];
  readonly below: number[];
}

const height = 38;
const rowGap = 34;
const columnGap = 18;
const bendWidth = 4;
const characterWidth = 6.7;

const xml = (text: string): string =>
  text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]!);

const boxWidth = ({ title, subtitle }: Box): number =>
  Math.max(
    48,
    Math.ceil(Math.max(title.length * (characterWidth + 0.6), subtitle.length * (characterWidth - 0.9))) + 18,
  );

/** The layer of each box: as low as its uses allow, so that weights stand beside what they meet. */
function layersOf(boxes: readonly Box[]): number[] {
  const layer = boxes.map(() => 0);
  boxes.forEach(({ inputs }, i) => {
    for (const input of inputs) layer[i] = Math.max(layer[i], layer[input] + 1);
  });
  const latest = boxes.map(() => Number.POSITIVE_INFINITY);
  for (let i = boxes.length - 1; i >= 0; i--) {
    if (Number.isFinite(latest[i])) layer[i] = latest[i];
    for (const input of boxes[i].inputs) latest[input] = Math.min(latest[input], layer[i] - 1);
  }
  return layer;
}

/** Draws the boxes, whose inputs come before them, as one SVG document. */
export function drawGraph(boxes: readonly Box[], caption: string): string {
  const layer = layersOf(boxes);
  const places: Place[] = boxes.map((box, i) => ({
    box: i,
    layer: layer[i],
    width: boxWidth(box),
    x: 0,
    above: [],
    below: [],
  }));
  const join = (from: number, to: number): void => {
    places[from].below.push(to);
    places[to].above.push(from);
  };
  boxes.forEach(({ inputs }, i) => {
    for (const input of new Set(inputs)) {
      let from = input;
      for (let l = layer[input] + 1; l < layer[i]; l++) {
        const bend = places.push({ box: -1, layer: l, width: bendWidth, x: 0, above: [], below: [] }) - 1;
        join(from, bend);
        from = bend;
      }
      join(from, i);
    }
  });
  const rows: number[][] = [];
  places.forEach((p, i) => {
    rows[p.layer] ??= [];
    rows[p.layer].push(i);
  });
  arrange(rows, places);
  return render(boxes, rows, places, caption);
}

/** Orders each row and gives every place its x: alternately by what is above and what is below. */
function arrange(rows: readonly number[][], places: readonly Place[]): void {
  const spread = (row: number[], wish: (i: number) => number): void => {
    const wanted = new Map(row.map((i) => [i, wish(i)]));
    row.sort((a, b) => wanted.get(a)! - wanted.get(b)! || a - b);
    // left to right, each at its wish or just beside its neighbour; then the row as a whole to where it wishes to be
    let edge = Number.NEGATIVE_INFINITY;
    let shift = 0;
    for (const i of row) {
      const half = places[i].width / 2;
      places[i].x = Math.max(wanted.get(i)!, edge + half);
      edge = places[i].x + half + columnGap;
      shift += wanted.get(i)! - places[i].x;
    }
    for (const i of row) places[i].x += shift / row.length;
  };
  let at = 0;
  for (const row of rows)
    for (const i of row) {
      places[i].x = at;
      at += places[i].width + columnGap;
      if (i === row.at(-1)) at = 0;
    }
  const mean = (list: readonly number[], otherwise: number): number =>
    list.length === 0 ? otherwise : list.reduce((n, i) => n + places[i].x, 0) / list.length;
  for (let sweep = 0; sweep < 8; sweep++) {
    for (const row of rows) spread(row, (i) => mean(places[i].above, places[i].x));
    for (const row of [...rows].reverse()) spread(row, (i) => mean(places[i].below, places[i].x));
  }
  for (const row of rows) spread(row, (i) => mean([...places[i].above, ...places[i].below], places[i].x));
}

function render(boxes: readonly Box[], rows: readonly number[][], places: readonly Place[], caption: string): string {
  const left = Math.min(...places.map((p) => p.x - p.width / 2)) - 20;
  const right = Math.max(...places.map((p) => p.x + p.width / 2)) + 20;
  const top = 44;
  const y = (p: Place): number => top + p.layer * (height + rowGap);
  const x = (p: Place): number => p.x - left;
  const total = top + rows.length * (height + rowGap);
  const n = (value: number): string => value.toFixed(1);
  const edges: string[] = [];
  for (const p of places)
    for (const to of p.below) {
      const q = places[to];
      const from = y(p) + (p.box < 0 ? height / 2 : height);
      const end = y(q) + (q.box < 0 ? height / 2 : 0);
      const mid = (from + end) / 2;
      const arrow = q.box < 0 ? "" : ' marker-end="url(#arrow)"';
      edges.push(
        `<path d="M${n(x(p))} ${n(from)} C${n(x(p))} ${n(mid)} ${n(x(q))} ${n(mid)} ${n(x(q))} ${n(end)}"${arrow}/>`,
      );
    }
  const drawn = places
    .filter((p) => p.box >= 0)
    .map((p) => {
      const box = boxes[p.box];
      const at = x(p) - p.width / 2;
      return (
        `<g><rect x="${n(at)}" y="${n(y(p))}" width="${p.width}" height="${height}" rx="5" fill="${box.color}"/>` +
        `<text x="${n(x(p))}" y="${n(y(p) + 16)}" class="t">${xml(box.title)}</text>` +
        `<text x="${n(x(p))}" y="${n(y(p) + 30)}" class="s">${xml(box.subtitle)}</text></g>`
      );
    });
  const width = Math.ceil(Math.max(right - left, 360));
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${Math.ceil(total)}" viewBox="0 0 ${width} ${Math.ceil(total)}" font-family="ui-sans-serif, system-ui, sans-serif">
<style>.t{font-size:12px;font-weight:600;text-anchor:middle;fill:#1b1f24}.s{font-size:10px;text-anchor:middle;fill:#4a5260}path{fill:none;stroke:#8a94a3;stroke-width:1.2}rect{stroke:#8a94a3;stroke-width:.8}</style>
<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#8a94a3;stroke:none"/></marker></defs>
<rect width="100%" height="100%" fill="#fff" stroke="none" style="stroke:none"/>
<text x="20" y="24" style="font-size:13px;fill:#1b1f24">${xml(caption)}</text>
${edges.join("\n")}
${drawn.join("\n")}
</svg>
`;
}
