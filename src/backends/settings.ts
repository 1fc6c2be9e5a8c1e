/** Settings of the environment, for backends that also run where there is none: a browser. */

/** An environment variable, without blanks around it; undefined where it is empty or there is no environment. */
export const setting = (name: string): string | undefined =>
  (typeof process === "object" ? process.env?.[name]?.trim() : undefined) || undefined;
