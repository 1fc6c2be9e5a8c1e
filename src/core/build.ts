/**
 * `import.meta.forBrowsers` is true in the build for browsers (scripts/browser.mjs) and undefined elsewhere. What no page
 * can reach stands behind it, so that it is left out there: texts for a terminal, and checks of the compiler's own work,
 * which the tests in Node make with every kernel. `import.meta.forGpus` is true in the same build, unless it is made for
 * tests: forms for software adapters stand behind it, which no browser gives a page unless it is told to.
 */
declare global {
  interface ImportMeta {
    readonly forBrowsers?: true;
    readonly forGpus?: true;
  }
}

export {};
