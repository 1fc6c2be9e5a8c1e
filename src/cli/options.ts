/**
 * Readers of command-line values: each turns a flag's text into a number that is checked, or says what was expected.
 * What the flags mean is each command's affair; the flag that all of them have is here.
 */

/** The flag of every command that computes, and its help. */
export const deviceFlag = ["--device <name>", "cpu, wasm, webgpu or reference; cpu where it works, else wasm"] as const;

type Reader<T> = (text: string) => T;

/** What commander takes as a complaint about a flag's value: it then names the flag itself. */
const complaint = (message: string) => Object.assign(new Error(message), { code: "commander.invalidArgument" });

function number(text: string, what: string, test: (x: number) => boolean): number {
  const value = Number(text);
  if (text.trim() === "" || !test(value)) throw complaint(`Expected ${what}.`);
  return value;
}

/** A whole number of at least `least`. */
export const count =
  (least: number): Reader<number> =>
  (text) =>
    number(text, `a whole number ≥ ${least}`, (x) => Number.isSafeInteger(x) && x >= least);

/** A number in [low, high]. */
export const between =
  (low: number, high: number): Reader<number> =>
  (text) =>
    number(text, `a number from ${low} to ${high}`, (x) => x >= low && x <= high);

/** A number above 0. */
export const positive: Reader<number> = (text) =>
  number(text, "a number > 0", (x) => x > 0 && x < Number.POSITIVE_INFINITY);

/** A number of at least 0. */
export const nonNegative: Reader<number> = (text) =>
  number(text, "a number ≥ 0", (x) => x >= 0 && x < Number.POSITIVE_INFINITY);

/** One of several words. */
export const oneOf =
  <T extends string>(...words: readonly T[]): Reader<T> =>
  (text) => {
    if (!words.includes(text as T)) throw complaint(`Expected ${words.join(" or ")}.`);
    return text as T;
  };

/** Names between commas, of all times that the flag is given. */
export const names = (text: string, before: readonly string[] | undefined): string[] => [
  ...(before ?? []),
  ...text.split(","),
];

/** A seed: any whole number that JavaScript holds exactly. */
export const seed = count(0);

/** The flag of every command that trains. */
export const precisionFlag = [
  "--precision <type>",
  "what products are computed in: f32, or bf16 with float32 sums (weights stay as they are)",
  oneOf("f32", "bf16"),
  "f32",
] as const;
