/**
 * The error function in double precision, which JavaScript lacks: two of the three rational approximations of W. J. Cody
 * (Rational Chebyshev approximations for the error function, Mathematics of Computation 23, 1969). The third is for an erfc
 * of 10⁻⁸ and less, where 1 − erfc has no digit of it that the second lacks. Within 4 units of the last place.
 */

/** Up to 0.46875 erf(x) = x·p(x²)/q(x²), above 1 − exp(−x²)·p(x)/q(x): numerators and denominators, highest power first. */
export const erfCoefficients = {
  near: [
    [0.18577770618460315, 3.1611237438705655, 113.86415415105016, 377.485237685302, 3209.3775891384694],
    [1, 23.601290952344122, 244.02463793444417, 1282.6165260773723, 2844.236833439171],
  ],
  far: [
    [
      2.1531153547440383e-8, 0.5641884969886701, 8.883149794388377, 66.11919063714163, 298.6351381974001,
      881.952221241769, 1712.0476126340707, 2051.0783778260716, 1230.3393547979972,
    ],
    [
      1, 15.744926110709835, 117.6939508913125, 537.1811018620099, 1621.3895745666903, 3290.7992357334597,
      4362.619090143247, 3439.3676741437216, 1230.3393548037495,
    ],
  ],
} as const;

const quotient = (x: number, [p, q]: readonly [readonly number[], readonly number[]]): number => {
  const at = (coefficients: readonly number[]): number => coefficients.reduce((sum, c) => sum * x + c);
  return at(p) / at(q);
};

/** erf(x) = 2/√π ∫₀ˣ exp(−t²) dt. */
export function erf(x: number): number {
  const a = Math.abs(x);
  if (a <= 0.46875) return x * quotient(x * x, erfCoefficients.near);
  if (a >= 6) return Math.sign(x);
  return Math.sign(x) * (1 - Math.exp(-a * a) * quotient(a, erfCoefficients.far));
}
