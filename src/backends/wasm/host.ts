/**
 * The functions of the host that modules import: those of Math that float64 takes, lane by lane. They are kept as text
 * too, because a worker is text (worker.ts).
 */

export type HostFunctions = Readonly<Record<string, (...args: number[]) => number>>;

const plain = ["exp", "log", "log1p", "expm1", "sin", "cos", "atan", "tanh"] as const;

/** C's pow: 1 to any power and anything to the 0 are 1, and so is (−1)^±∞. */
const pow = "(x, y) => (x === 1 || (x === -1 && Math.abs(y) === Infinity) ? 1 : x ** y)";

export const hostSource = `({ ${plain.map((name) => `${name}: Math.${name}`).join(", ")}, fmod: (x, y) => x % y, pow: ${pow} })`;

export const hostFunctions: HostFunctions = {
  ...Object.fromEntries(plain.map((name) => [name, Math[name]])),
  fmod: (x, y) => x % y,
  pow: (x, y) => (x === 1 || (x === -1 && Math.abs(y) === Number.POSITIVE_INFINITY) ? 1 : x ** y),
};
