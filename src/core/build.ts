/**
 * Which build this is. What no page can reach, texts for a terminal and forms for software adapters, stands behind this
 * constant, so that a bundler for browsers leaves it out.
 */
export const forBrowsers: boolean = false;
