/*
 * Blocks of a weight as a GGUF file holds them (the layouts are ggml's: formats/quants.ts tells how each lies): 32 codes at a time as bytes, and a
 * block as floats. Blocks of 32 numbers (q4_1, q5_0, q5_1) are a part with a scale; blocks of 256 (the K types) are 8 parts of 32 with a small
 * integer as scale each, q6_k one for each half of a part. Vectors are of 32 bytes with AVX2, else of 16, whatever W is. Used by stored.c and quantized.c.
 */
#ifndef NABLA_STORED_H
#define NABLA_STORED_H
#include "runtime.h"

/* The numbers of the formats: quantized.ts. */
enum { FORMAT_NF4, FORMAT_INT8, FORMAT_Q4_1, FORMAT_Q5_0, FORMAT_Q5_1, FORMAT_Q4_K, FORMAT_Q5_K, FORMAT_Q6_K };

/* gcc's names of instructions; clang has not all of them. */
#if defined(__AVX2__) && !defined(__clang__)
#define STORED_AVX2
#define VB 32
#else
#define VB 16
#endif
/* A piece of a part: VB codes as bytes, and what comes of them. */
enum { PIECES = 32 / VB };
typedef uint8_t vb __attribute__((vector_size(VB)));
typedef uint8_t vb_u __attribute__((vector_size(VB), may_alias, aligned(1)));
typedef uint16_t vb_words __attribute__((vector_size(VB)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef uint8_t u8x16_u __attribute__((vector_size(16), may_alias, aligned(1)));
typedef int16_t s16x8 __attribute__((vector_size(16)));
typedef long long s64x2 __attribute__((vector_size(16)));
#if defined(STORED_AVX2)
typedef char b8x16 __attribute__((vector_size(16)));
typedef char b8x32 __attribute__((vector_size(32)));
typedef int32_t s32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x8_u __attribute__((vector_size(32), may_alias, aligned(4)));
#endif

INLINE int is_k(int format) { return format >= FORMAT_Q4_K; }
INLINE int64_t block_elements(int format) { return is_k(format) ? 256 : 32; }
INLINE int64_t block_bytes(int format) {
  static const uint8_t bytes[] = {0, 0, 20, 22, 24, 144, 176, 210};
  return bytes[format];
}

INLINE float half_at(const uint8_t *p) {
  uint16_t h;
  memcpy(&h, p, 2);
#if defined(__F16C__) && !defined(__clang__)
  return __builtin_ia32_vcvtph2ps((s16x8){(int16_t)h})[0];
#else
  return from_f16(h);
#endif
}
INLINE uint32_t word_at(const uint8_t *p) { uint32_t w; memcpy(&w, p, 4); return w; }
INLINE vb bytes_at(const uint8_t *p) { return (vb)*(const vb_u *)p; }
INLINE vb splat8(uint8_t x) { return x - (vb){0}; }
/* Shifts of 16 bits at a time: what comes over from the neighbour is to be masked away. */
INLINE vb left(vb v, int n) { return (vb)((vb_words)v << n); }
INLINE vb right(vb v, int n) { return (vb)((vb_words)v >> n); }

/* Of a block of 32: the low halves of 16 bytes are its first codes, the high ones the others. Its fifth bits are in four bytes. */
#if VB == 32
INLINE vb nibbles(const uint8_t *p, int piece) {
  const u32x8 v = (u32x8)__builtin_ia32_vbroadcastsi256((s64x2)*(const u8x16_u *)p);
  return (vb)(v >> (u32x8){0, 0, 0, 0, 4, 4, 4, 4}) & splat8(15);
}
INLINE vb with_fifth_bits(vb codes, const uint8_t *p, int piece) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  return (vb)__builtin_ia32_paddb256_mask((b8x32)codes, (b8x32)splat8(16), (b8x32)codes, word_at(p));
#else
  const vb each = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const vb of = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3};
  const vb spread = (vb)__builtin_ia32_pshufb256((b8x32)((int32_t)word_at(p) - (s32x8){0}), (b8x32)of);
  return codes | ((vb)((spread & each) == each) & splat8(16));
#endif
}
#else
INLINE vb nibbles(const uint8_t *p, int piece) { return right(bytes_at(p), 4 * piece) & splat8(15); }
INLINE vb with_fifth_bits(vb codes, const uint8_t *p, int piece) {
  const vb each = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const long long eightfold = 0x0101010101010101;
  const vb spread = (vb)(s64x2){p[2 * piece] * eightfold, p[2 * piece + 1] * eightfold};
  return codes | ((vb)((spread & each) == each) & splat8(16));
}
#endif

/* A piece of part p of a block, codes from 0 on. */
INLINE vb codes_of(int format, const uint8_t *b, int p, int piece) {
  const uint8_t *at = b + VB * piece;
  switch (format) {
    case FORMAT_Q4_1: return nibbles(b + 4, piece);
    case FORMAT_Q5_0: return with_fifth_bits(nibbles(b + 6, piece), b + 2, piece);
    case FORMAT_Q5_1: return with_fifth_bits(nibbles(b + 8, piece), b + 4, piece);
    case FORMAT_Q4_K: return right(bytes_at(at + 16 + p / 2 * 32), p % 2 * 4) & splat8(15);
    case FORMAT_Q5_K: {
      const vb low = right(bytes_at(at + 48 + p / 2 * 32), p % 2 * 4) & splat8(15), bits = bytes_at(at + 16);
      return low | ((p < 4 ? left(bits, 4 - p) : right(bits, p - 4)) & splat8(16));
    }
    default: { /* q6_k: four parts share 64 bytes of low halves and 32 of pairs of bits */
      const vb low = right(bytes_at(at + p / 4 * 64 + p % 2 * 32), p % 4 / 2 * 4) & splat8(15), bits = bytes_at(at + 128 + p / 4 * 32);
      const int shift = p % 4 * 2;
      return low | ((shift < 4 ? left(bits, 4 - shift) : right(bits, shift - 4)) & splat8(48));
    }
  }
}

/* The bytes of the 8 scales and the 8 minima of a q4_k or q5_k block, 6 bits each, packed in the 12 bytes at p. */
typedef struct { uint32_t scales[2], minima[2]; } SixBits;
INLINE SixBits six_bits(const uint8_t *p) {
  const uint32_t a = word_at(p), m = word_at(p + 4), rest = word_at(p + 8);
  return (SixBits){
      {a & 0x3f3f3f3f, (rest & 0x0f0f0f0f) | ((a >> 2) & 0x30303030)},
      {m & 0x3f3f3f3f, ((rest >> 4) & 0x0f0f0f0f) | ((m >> 2) & 0x30303030)},
  };
}

/* d[i] = (code - zero) * scale - least for 16 codes. */
INLINE void floats_of_16(const uint8_t *codes, float zero, float scale, float least, float *d) {
#if defined(STORED_AVX2)
  for (int i = 0; i < 16; i += 8) {
    s64x2 v = {0};
    memcpy(&v, codes + i, 8);
    const f32x8 x = __builtin_convertvector((s32x8)__builtin_ia32_pmovzxbd256((b8x16)v), f32x8);
    *(f32x8_u *)(d + i) = (f32x8_u)((x - zero) * scale - least);
  }
#else
  for (int i = 0; i < 16; i++) d[i] = ((float)codes[i] - zero) * scale - least;
#endif
}
/* A block as floats, each rounded once. */
INLINE void block_to_floats(int format, const uint8_t *b, float *d) {
  uint8_t codes[32] __attribute__((aligned(32)));
  const int is_6 = format == FORMAT_Q6_K, parts = is_k(format) ? 8 : 1;
  const float scale = half_at(is_6 ? b + 208 : b), minimum = is_6 || format == FORMAT_Q5_0 ? 0 : half_at(b + 2);
  const SixBits six = six_bits(b + 4);
  for (int p = 0; p < parts; p++) {
    for (int i = 0; i < PIECES; i++) *(vb_u *)(codes + VB * i) = codes_of(format, b, p, i);
    const int s = six.scales[p / 4] >> (p % 4 * 8) & 63, m = six.minima[p / 4] >> (p % 4 * 8) & 63;
    for (int h = 0; h < 2; h++, d += 16) {
      if (is_6) floats_of_16(codes + 16 * h, 32, scale * (int8_t)b[192 + 2 * p + h], 0, d);
      else if (is_k(format)) floats_of_16(codes + 16 * h, 0, scale * s, minimum * m, d);
      else floats_of_16(codes + 16 * h, format == FORMAT_Q5_0 ? 16 : 0, scale, -minimum, d);
    }
  }
}
#endif
