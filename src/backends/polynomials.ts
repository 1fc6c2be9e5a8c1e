/**
 * Coefficients of the float32 functions, highest power first: Cephes' expf, logf, sinf and cosf (Moshier), and minimax
 * polynomials of erf and atan. Siblings of those in cpu/runtime/lanes.h; each is the shortest text of its float32.
 */

/** (e^r − 1 − r) / r², |r| ≤ ln 2 / 2. */
export const expPolynomial = [0.00019875691, 0.00139819995, 0.008333452, 0.041665796, 0.16666665, 0.5];
/** (log(1 + f) − f + f² / 2) / f³, 1 + f in √½ … √2. */
export const logPolynomial = [
  0.070376836, -0.1151461, 0.116769987, -0.12420141, 0.14249323, -0.16668058, 0.200007148, -0.24999994, 0.3333333,
];
/** erf(x) / x − 1 in x², below 0.93. */
export const erfPolynomial = [-0.0005915847, 0.004978824, -0.026757277, 0.11281583, -0.37612477, 0.12837915];
/** log(erfc(x)) / x + 1, above. */
export const erfcPolynomial = [0.00021398836, -0.0032149788, 0.022890022, -0.10526191, -0.6357183, -0.12851436];
/** (atan(x) / x − 1) / x² in x², up to 1. */
export const atanPolynomial = [
  0.0029203598, -0.01636652, 0.043209426, -0.075519934, 0.10665893, -0.14211024, 0.19993769, -0.33333153,
];
/** (sin(x) / x − 1) / x², and (cos(x) − 1 + x² / 2) / x⁴, in x², |x| ≤ π / 4. */
export const sinPolynomial = [-0.00019515296, 0.008332161, -0.16666655];
export const cosPolynomial = [2.4433157e-5, -0.0013887316, 0.041666646];
