/** The sheet to draw on: with a pen, a finger or a mouse, or with the keyboard. It keeps lines, not pixels. */

export interface Point {
  readonly x: number;
  readonly y: number;
}

/** Side of the sheet, in its own units. */
const side = 280;
const lineWidth = 20;
/** How far an arrow key moves the pen. */
const stride = 10;

const arrows: Readonly<Record<string, Point>> = {
  ArrowLeft: { x: -stride, y: 0 },
  ArrowRight: { x: stride, y: 0 },
  ArrowUp: { x: 0, y: -stride },
  ArrowDown: { x: 0, y: stride },
};

const clamp = (value: number): number => Math.min(side, Math.max(0, value));

export class Drawing {
  readonly #canvas: HTMLCanvasElement;
  readonly #changed: (strokes: readonly (readonly Point[])[]) => void;
  #strokes: Point[][] = [];
  /** Where the keyboard's pen is, and whether it is on the paper. */
  #pen: Point = { x: side / 2, y: side / 4 };
  #down = false;

  /** `changed` is called with all lines whenever there is something new. */
  constructor(canvas: HTMLCanvasElement, changed: (strokes: readonly (readonly Point[])[]) => void) {
    this.#canvas = canvas;
    this.#changed = changed;
    canvas.width = canvas.height = side * Math.min(3, Math.ceil(devicePixelRatio));
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#go(event));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    for (const type of ["focus", "blur"])
      canvas.addEventListener(type, () => {
        this.#down = false;
        this.#paint();
      });
    // ink and paper are the page's colours
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#paint());
    this.#paint();
  }

  clear(): void {
    this.#strokes = [];
    this.#down = false;
    this.#update();
  }

  #at({ clientX, clientY }: { clientX: number; clientY: number }): Point {
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    return { x: clamp(((clientX - left) / width) * side), y: clamp(((clientY - top) / height) * side) };
  }

  #begin(event: PointerEvent): void {
    if (event.button !== 0) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#strokes.push([this.#at(event)]);
    this.#update();
  }

  #go(event: PointerEvent): void {
    if (!this.#canvas.hasPointerCapture(event.pointerId)) return;
    const between = event.getCoalescedEvents?.() ?? [];
    for (const moved of between.length > 0 ? between : [event]) this.#strokes.at(-1)?.push(this.#at(moved));
    this.#update();
  }

  #key(event: KeyboardEvent): void {
    const move = arrows[event.key];
    if (move) {
      this.#pen = { x: clamp(this.#pen.x + move.x), y: clamp(this.#pen.y + move.y) };
      if (this.#down) this.#strokes.at(-1)?.push(this.#pen);
    } else if (event.key === " ") {
      this.#down = !this.#down;
      if (this.#down) this.#strokes.push([this.#pen]);
    } else if (event.key === "Delete" || event.key === "Backspace") this.clear();
    else return;
    event.preventDefault(); // the page does not scroll
    this.#update();
  }

  #update(): void {
    this.#paint();
    this.#changed(this.#strokes);
  }

  #paint(): void {
    const context = this.#canvas.getContext("2d") as CanvasRenderingContext2D;
    const scale = this.#canvas.width / side;
    const style = getComputedStyle(this.#canvas);
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, side, side);
    context.strokeStyle = style.color;
    trace(context, this.#strokes, lineWidth);
    if (!this.#canvas.matches(":focus-visible")) return;
    context.strokeStyle = context.fillStyle = style.getPropertyValue("--accent");
    context.lineWidth = 3;
    context.beginPath();
    context.arc(this.#pen.x, this.#pen.y, lineWidth / 2, 0, 2 * Math.PI);
    if (this.#down) context.fill();
    else context.stroke();
  }
}

/** Draws lines with round ends. */
export function trace(
  context: CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D,
  strokes: readonly (readonly Point[])[],
  width: number,
): void {
  context.lineWidth = width;
  context.lineCap = context.lineJoin = "round";
  for (const [first, ...rest] of strokes) {
    context.beginPath();
    context.moveTo(first.x, first.y);
    for (const { x, y } of rest.length > 0 ? rest : [first]) context.lineTo(x, y);
    context.stroke();
  }
}
