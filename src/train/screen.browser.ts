/** A page's screen for lines of text is its console, which is no terminal. */
import type { Screen } from "./terminal.ts";

export const screen = (): Screen => ({
  write: (text) => {
    const line = text.replace(/\n$/, "");
    if (line !== "") console.log(line);
  },
});

export const environment = (): Readonly<Record<string, string | undefined>> => ({});
