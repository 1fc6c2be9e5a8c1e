/**
 * `import.meta.forBrowsers` is true in the build for browsers (scripts/browser.mjs) and undefined elsewhere. What no page
 * can reach stands behind it, so that it is left out there: texts for a terminal, forms for software adapters, and checks of
 * the compiler's own work, which the tests in Node make with every kernel.
 */
declare global {
  interface ImportMeta {
    readonly forBrowsers?: true;
  }
}

export {};
