/**
 * The error function in double precision, which JavaScript lacks: the rational approximations of fdlibm's s_erf.c
 * (Sun Microsystems, 1993), whose coefficients are used here. Error below 1 ulp by its own account.
 */

const polynomial = (x: number, c: readonly number[]): number => {
  let sum = 0;
  for (let i = c.length - 1; i >= 0; i--) sum = sum * x + c[i];
  return sum;
};

// |x| < 0.84375: erf(x) = x + x·p(x²)/q(x²)
const pp = [
  0.12837916709551256, -0.3250421072470015, -0.02848174957559851, -0.005770270296489442, -2.3763016656650163e-5,
];
const qq = [
  1, 0.39791722395915535, 0.0650222499887673, 0.005081306281875766, 1.3249473800432164e-4, -3.960228278775368e-6,
];
// |x| < 1.25: erf(x) = 0.845… + p(|x| − 1)/q(|x| − 1)
const middle = 0.8450629115104675;
const pa = [
  -0.0023621185607526594, 0.41485611868374833, -0.3722078760357013, 0.31834661990116175, -0.11089469428239668,
  0.035478304325618236, -0.002166375594868791,
];
const qa = [
  1, 0.10642088040084423, 0.540397917702171, 0.07182865441419627, 0.12617121980876164, 0.01363708391202905,
  0.011984499846799107,
];
// |x| < 1/0.35: erfc(x) = exp(−x² − 0.5625 + r(1/x²)/s(1/x²))/x
const ra = [
  -0.009864944034847148, -0.6938585727071818, -1.0558626225323291e1, -6.2375332450326006e1, -1.6239666946257347e2,
  -1.8460509290671104e2, -8.12874355063066e1, -9.814329344169145,
];
const sa = [
  1, 1.9651271667439257e1, 1.3765775414351904e2, 4.3456587747522923e2, 6.453872717332679e2, 4.2900814002756783e2,
  1.0863500554177944e2, 6.570249770319282, -0.0604244152148581,
];
// |x| < 6: the same form
const rb = [
  -0.0098649429247001, -0.799283237680523, -1.7757954917754752e1, -1.6063638485582192e2, -6.375664433683896e2,
  -1.0250951316110772e3, -4.835191916086514e2,
];
const sb = [
  1, 3.033806074348246e1, 3.257925129965739e2, 1.536729586084437e3, 3.1998582195085955e3, 2.5530504064331644e3,
  4.7452854120695537e2, -2.244095244658582e1,
];

/** The same for others: numerator and denominator of each stretch, lowest power first. */
export const erfCoefficients = {
  near: [pp, qq],
  middle,
  around1: [pa, qa],
  below3: [ra, sa],
  below6: [rb, sb],
} as const;

/** erf(x) = 2/√π ∫₀ˣ exp(−t²) dt. */
export function erf(x: number): number {
  const a = Math.abs(x);
  if (a < 0.84375) {
    const z = x * x;
    return x + x * (polynomial(z, pp) / polynomial(z, qq));
  }
  if (Number.isNaN(x)) return x;
  const sign = x < 0 ? -1 : 1;
  if (a < 1.25) return sign * (middle + polynomial(a - 1, pa) / polynomial(a - 1, qa));
  if (a >= 6) return sign;
  const s = 1 / (a * a);
  const ratio = a < 1 / 0.35 ? polynomial(s, ra) / polynomial(s, sa) : polynomial(s, rb) / polynomial(s, sb);
  return sign * (1 - Math.exp(-a * a - 0.5625 + ratio) / a);
}
