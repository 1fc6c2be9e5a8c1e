/** What a child process of a test is started with, so that it reads TypeScript as the test itself does. */
export const typescript: readonly string[] = [
  "--import",
  new URL("../../scripts/typescript.mjs", import.meta.url).href,
];
