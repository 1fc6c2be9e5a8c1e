/** The types of browser.mjs. */
import type { Metafile } from "esbuild";

export const entries: Readonly<Record<string, string>>;
export function buildBrowser(folder: string, options?: { readonly softwareAdapters?: boolean }): Promise<Metafile>;
