/** See build.ts. */
export const forBrowsers = true;
