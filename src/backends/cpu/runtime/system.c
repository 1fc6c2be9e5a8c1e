/*
 * What the runtime asks of the operating system and the processor: memory, shared libraries, feature bits. The feature
 * part (NABLA_PROBE) is also compiled alone, with baseline flags, before anything else is built (toolchain.ts).
 */
#include <stdint.h>
#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* Bits of nabla_features; toolchain.ts turns them into compiler flags. */
enum {
  FEATURE_X86 = 1, FEATURE_ARM64 = 2, FEATURE_SSE42 = 4, FEATURE_AVX = 8, FEATURE_FMA = 16, FEATURE_F16C = 32, FEATURE_AVX2 = 64,
  FEATURE_BMI = 128, FEATURE_AVX512 = 256, /* F, DQ, BW and VL together */
  FEATURE_AVX512VNNI = 512, FEATURE_AVX512BF16 = 1024, FEATURE_DOTPROD = 2048
};

#if defined(__x86_64__)
static void cpuid(uint32_t leaf, uint32_t sub, uint32_t r[4]) {
  __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}
EXPORT int32_t nabla_features(void) {
  uint32_t r[4], f = FEATURE_X86, top;
  cpuid(0, 0, r);
  top = r[0];
  cpuid(1, 0, r);
  const uint32_t ecx = r[2];
  if (ecx >> 20 & 1) f |= FEATURE_SSE42;
  if (!(ecx >> 27 & 1)) return (int32_t)f; /* OSXSAVE: without it the system does not keep wide registers */
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  if ((lo & 6) != 6 || !(ecx >> 28 & 1)) return (int32_t)f;
  f |= FEATURE_AVX;
  if (ecx >> 12 & 1) f |= FEATURE_FMA;
  if (ecx >> 29 & 1) f |= FEATURE_F16C;
  if (top < 7) return (int32_t)f;
  cpuid(7, 0, r);
  const uint32_t b = r[1], c = r[2], leaves = r[0];
  if (b >> 5 & 1) f |= FEATURE_AVX2;
  if ((b >> 3 & 1) && (b >> 8 & 1)) f |= FEATURE_BMI;
  if ((lo & 0xe6) == 0xe6 && (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1)) {
    f |= FEATURE_AVX512;
    if (c >> 11 & 1) f |= FEATURE_AVX512VNNI;
    if (leaves >= 1) { cpuid(7, 1, r); if (r[0] >> 5 & 1) f |= FEATURE_AVX512BF16; }
  }
  return (int32_t)f;
}
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
EXPORT int32_t nabla_features(void) { return FEATURE_ARM64 | (getauxval(AT_HWCAP) >> 20 & 1 ? FEATURE_DOTPROD : 0); }
#else
EXPORT int32_t nabla_features(void) { return FEATURE_ARM64; }
#endif
#else
EXPORT int32_t nabla_features(void) { return 0; }
#endif

#ifndef NABLA_PROBE
#include "runtime.h"
#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20 };
typedef struct { void *start; size_t bytes; } Mapping;

#if defined(__SANITIZE_ADDRESS__)
/* Under AddressSanitizer every buffer is a block of its own, so that a step past its end is seen. */
EXPORT double nabla_alloc(double size) {
  void *p = 0;
  if (posix_memalign(&p, 64, size < 1 ? 1 : (size_t)size)) return 0;
  return (double)(uintptr_t)memset(p, 0, size < 1 ? 1 : (size_t)size);
}
EXPORT void nabla_free(double pointer) { free((void *)(uintptr_t)pointer); }
#else
/*
 * Zeroed memory, aligned to 64 bytes; where it is 2 MiB or more, aligned to that, and its whole huge pages on huge pages
 * where the kernel grants them. The rest stays on small ones: a weight of 2.4 MB must not take 4.2. The page before the
 * pointer holds what nabla_free needs. Returns 0 where the system refuses.
 */
EXPORT double nabla_alloc(double size) {
  const size_t bytes = size < 1 ? 1 : (size_t)size, body = (bytes + 4095) / 4096 * 4096;
  const size_t align = bytes >= HUGE_PAGE ? HUGE_PAGE : 4096, total = body + 4096 + (align - 4096);
  char *m = mmap(0, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (m == MAP_FAILED) return 0;
  char *p = (char *)(((uintptr_t)m + 4096 + align - 1) / align * align), *start = p - 4096;
  /* what aligning left over goes back, lest the kernel join it with a neighbour and give both a huge page */
  if (start > m) munmap(m, (size_t)(start - m));
  if (m + total > p + body) munmap(p + body, (size_t)(m + total - (p + body)));
#if defined(MADV_HUGEPAGE)
  if (bytes >= HUGE_PAGE) madvise(p, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
  *(Mapping *)(p - 64) = (Mapping){start, body + 4096};
  return (double)(uintptr_t)p;
}
EXPORT void nabla_free(double pointer) {
  if (!pointer) return;
  const Mapping m = *(Mapping *)((char *)(uintptr_t)pointer - 64);
  munmap(m.start, m.bytes);
}
#endif

/* Between JavaScript's memory and that at a pointer. A view of foreign memory costs JavaScript 0.04 ms where caches are cold. */
EXPORT void nabla_read(void *to, double from, double bytes) { memcpy(to, (const void *)(uintptr_t)from, (size_t)bytes); }
EXPORT void nabla_write(double to, const void *from, double bytes) { memcpy((void *)(uintptr_t)to, from, (size_t)bytes); }

/* The address of `symbol` in the library at `path`, or 0 (nabla_open_error says why). Libraries stay open. */
EXPORT double nabla_open(const char *path, const char *symbol) {
  void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  return lib ? (double)(uintptr_t)dlsym(lib, symbol) : 0;
}
EXPORT const char *nabla_open_error(void) { const char *e = dlerror(); return e ? e : "the symbol is not there"; }

EXPORT double nabla_builtin(const char *name) {
  for (int i = 0; i < nabla_builtin_count; i++) if (!strcmp(nabla_builtins[i].name, name)) return (double)(uintptr_t)nabla_builtins[i].fn;
  return 0;
}
EXPORT const char *nabla_builtin_name(int32_t i) { return i >= 0 && i < nabla_builtin_count ? nabla_builtins[i].name : 0; }
/* The micro-kernel's shape and the vector's lanes, for the planner: MR, NR, W. */
EXPORT int32_t nabla_abi_version(void) { return NABLA_ABI_VERSION; }
#endif
