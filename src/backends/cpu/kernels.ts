/** How many rows of a kernel the threads take at a time. What kernels are is compiler/, how they are rendered render.ts. */
import type { Kernel } from "../../compiler/kernel.ts";
import { chooseForm } from "./render.ts";

/** Rows a tile of a row kernel: about 32,768 positions, at least 16 tiles where there are rows for them. */
export function rowGrain(k: Kernel): number {
  const columns = Math.max(1, k.columns);
  const partial = k.stages.some((s) => s.columns.length);
  let grain = Math.max(1, Math.min(Math.ceil(k.rows / 16), Math.ceil(32768 / columns)));
  if (partial) grain = Math.max(grain, Math.ceil(k.rows / 32));
  return chooseForm(k) === "rows" ? Math.ceil(grain / 16) * 16 : grain;
}
