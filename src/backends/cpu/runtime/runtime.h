/*
 * What the runtime's own files share: dtype codes (core/dtype.ts), small helpers, the pool's and the program's entry
 * points, and the table of builtin kernels. Not seen by generated kernels, which have abi.h.
 */
#ifndef NABLA_RUNTIME_H
#define NABLA_RUNTIME_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "abi.h"
#include "simd.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
enum { F32 = 0, F64 = 1, F16 = 2, BF16 = 3, I32 = 4 }; /* as core/dtype.ts */
enum { BF16_OF_F32 = 15 }; /* float32 in memory that counts as it is when rounded to bfloat16 */
enum { MAX_THREADS = 256 };
/* A row of x of so many bytes, half of the first cache, is read for so many rows of a weight at a time: gemm.c, STREAM_TOGETHER. */
enum { LONG_ROW = 1 << 14, TOGETHER = 8 };

INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }
INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
/* How many rows of so many bytes, a multiple of `step`, stay in the second cache while rows of a weight go by. */
INLINE int64_t rows_in_cache(int64_t bytes, int64_t step) { return max64(1, (1 << 18) / bytes / step) * step; }

INLINE float from_bf16(uint16_t h) { union { uint32_t u; float f; } v = {(uint32_t)h << 16}; return v.f; }
/* Rounded to nearest, ties to even; NaN stays NaN. */
INLINE uint16_t to_bf16(float x) {
  union { float f; uint32_t u; } v = {x};
  return (x == x ? v.u + 0x7fff + (v.u >> 16 & 1) : v.u | 0x400000) >> 16;
}
INLINE float from_f16(uint16_t h) {
  /* a half below 2^-14 is its last 10 bits times 2^-24, the last place of 1/2: no step through a denormal, which would be 0 here */
  const uint32_t a = h & 0x7fff;
  union { uint32_t u; float f; } v;
  if (a < 0x400) { v.u = a | 0x3f000000; v.f -= 0.5f; }
  else v.u = (a << 13) + (a >= 0x7c00 ? 224u << 23 : 112u << 23);
  v.u |= (uint32_t)(h & 0x8000) << 16;
  return v.f;
}

/* pool.c */
int pool_threads(void);
typedef void (*Job)(void *arg, int tid, int32_t phase);
int pool_team(int n);
int pool_acquire(int wait);
void pool_release(void);
void pool_begin(int wake, Job body, void *arg, atomic_int *running);
void pool_finish(atomic_int *running);
void pool_phase_end(int final, void (*done)(void *arg), void *arg);
char **pool_scratch(int n, int64_t bytes);
int64_t now_ns(void);

typedef struct { const char *name; KernelFn fn; } Builtin;
extern const Builtin nabla_builtins[];
extern const int nabla_builtin_count;

#define KERNEL(name) void name(const Cmd *c, int64_t r0, int64_t r1, int tid)
KERNEL(k_pack_b); KERNEL(k_gemm); KERNEL(k_gemm_skinny); KERNEL(k_gemm_small); KERNEL(k_gemm_f64); KERNEL(k_gemm_i32);
#if W == 16 && defined(__AVX512BF16__)
KERNEL(k_pack_bf16); KERNEL(k_gemm_bf16);
#endif
KERNEL(k_attention_fwd); KERNEL(k_attention_bwd);
KERNEL(k_scatter); KERNEL(k_argsort); KERNEL(k_cumulative); KERNEL(k_fill); KERNEL(k_copy); KERNEL(k_transpose); KERNEL(k_update);
KERNEL(k_block_quantize); KERNEL(k_block_linear); KERNEL(k_stored_quantize); KERNEL(k_stored_linear);
KERNEL(k_conv_pack); KERNEL(k_conv2d_fwd); KERNEL(k_conv2d_dx); KERNEL(k_conv2d_dw); KERNEL(k_conv2d_dw_finish);
KERNEL(k_gemm_quantized); KERNEL(k_gemm_quantized_skinny); KERNEL(k_dequantize);
#endif
