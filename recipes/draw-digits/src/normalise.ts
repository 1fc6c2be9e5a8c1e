/**
 * A drawing as MNIST has its digits (LeCun et al. 1998): fitted into 20 × 20 pixels with its proportions kept, and set into
 * 28 × 28 so that its centre of mass is in the middle. The network has seen no others.
 */
import { size } from "./digits.ts";
import { type Point, trace } from "./drawing.ts";

const box = 20;
/** Of MNIST's lines, in pixels of the result. */
const lineWidth = 2.4;
/** A dot is not blown up to a disc. */
const mostScale = 0.4;

const canvas = new OffscreenCanvas(size, size);
const context = canvas.getContext("2d", { willReadFrequently: true }) as OffscreenCanvasRenderingContext2D;

/** Ink from 0 to 1 at each of the 28 × 28 pixels. */
function ink(strokes: readonly (readonly Point[])[]): Float32Array {
  context.clearRect(0, 0, size, size);
  trace(context, strokes, lineWidth);
  const { data } = context.getImageData(0, 0, size, size);
  return Float32Array.from({ length: size * size }, (_, i) => data[4 * i + 3] / 255);
}

/** The strokes of a drawing as 28 × 28 numbers from 0 (paper) to 1 (ink); null where nothing is drawn. */
export function normalise(strokes: readonly (readonly Point[])[]): Float32Array | null {
  const points = strokes.flat();
  if (points.length === 0) return null;
  const [xs, ys] = [points.map(({ x }) => x), points.map(({ y }) => y)];
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [top, bottom] = [Math.min(...ys), Math.max(...ys)];
  const scale = Math.min(mostScale, (box - lineWidth) / Math.max(right - left, bottom - top));
  const placed = (dx: number, dy: number): Point[][] =>
    strokes.map((stroke) =>
      stroke.map(({ x, y }) => ({
        x: (x - (left + right) / 2) * scale + size / 2 + dx,
        y: (y - (top + bottom) / 2) * scale + size / 2 + dy,
      })),
    );
  const middle = ink(placed(0, 0));
  let [mass, massX, massY] = [0, 0, 0];
  for (const [i, value] of middle.entries()) {
    mass += value;
    massX += value * ((i % size) + 0.5);
    massY += value * (Math.floor(i / size) + 0.5);
  }
  return ink(placed(size / 2 - massX / mass, size / 2 - massY / mass));
}
