/**
 * What follows a product, as statements that its text does with every finished sum: a bias and an activation, a residual,
 * an optimizer's step on a weight's gradient. An elementwise kernel over the product's rows and columns, whose reads of
 * the product are the sum itself. The product's own text is matmul.ts'; which kernel may follow, assemble.ts decides.
 */
import type { Kernel, Value } from "../../compiler/kernel.ts";
import type { DType } from "../../core/dtype.ts";
import { type Check, Emitter, type WgslOptions } from "./emit.ts";
import { perWord } from "./layout.ts";

/** Whether a kernel is one that can follow: nothing reduced, and elements that are words of their own where it stores. */
export const canFollow = (k: Kernel, options: { readonly f16: boolean }): boolean =>
  k.stages.length === 1 &&
  k.stages.every((s) => s.reductions.length + s.columns.length + s.rowStores.length === 0 && s.stores.length > 0) &&
  k.buffers.every(({ dtype, written }) => (written ? perWord(dtype) === 1 : !(dtype === "float16" && options.f16)));

class Epilogue extends Emitter {
  private readonly product: number;

  constructor(k: Kernel, options: WgslOptions, product: number) {
    super(k, options);
    this.product = product;
  }

  protected override load(v: Value): string {
    return v.slot === this.product ? "x" : super.load(v);
  }

  text(): { lines: readonly string[]; checks: readonly Check[] } {
    if (this.options.writesState) this.line("if (atomicLoad(&failure.operation) != 0u) { return; }");
    const { stores } = this.k.stages[0];
    const names = stores.map((st) => this.value(st.value)); // all is read before anything is written
    stores.forEach((st, i) => {
      this.store(st.buffer, this.index(st.index), names[i]);
    });
    return { lines: this.lines, checks: this.checks };
  }
}

/**
 * The statements for the sum `x` at row r and column c. `product` is the number of the kernel's buffer that is the
 * product; `bind` gives the name of any other.
 */
export function renderEpilogue(
  k: Kernel,
  options: WgslOptions,
  product: number,
  bind: (buffer: number, dtype: DType) => string,
): { readonly text: string; readonly checks: readonly Check[] } {
  const { lines, checks } = new Epilogue(k, options, product).text();
  const text = lines.join("\n").replace(/\bb(\d+)\b/g, (_, i) => bind(Number(i), k.buffers[Number(i)].dtype));
  return { text, checks };
}
