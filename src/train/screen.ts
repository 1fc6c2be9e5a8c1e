/** The process' screen and environment. In the browser's build `screen.browser.ts` is in the place of this file. */
import type { Screen } from "./terminal.ts";

export const screen = (): Screen => process.stdout;

export const environment = (): Readonly<Record<string, string | undefined>> => process.env;
