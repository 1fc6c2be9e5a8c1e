/**
 * Where decoding is done: in Node on the thread that asks. In the browser's build `elsewhere.browser.ts` is in the place of
 * this file, for a page must go on answering its user.
 */
import type { ReadOptions } from "./source.ts";

/** Does a task of `decoder.ts`, by its name, in another thread. */
export type Elsewhere = <T>(task: string, values: readonly unknown[], options: ReadOptions) => Promise<T>;

/** null: do it here. */
export const elsewhere: Elsewhere | null = null as Elsewhere | null;
