/**
 * `import.meta.forBrowsers` is true in the build for browsers (scripts/browser.mjs) and undefined elsewhere. What no page
 * can reach, texts for a terminal and forms for software adapters, stands behind it, so that it is left out there.
 */
declare global {
  interface ImportMeta {
    readonly forBrowsers?: true;
  }
}

export {};
