/** Paths. In the browser's build `path.browser.ts` is in the place of this file. */
export { basename, dirname, extname, join } from "node:path";
