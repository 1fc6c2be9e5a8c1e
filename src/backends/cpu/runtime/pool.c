/*
 * The thread pool: threads, barrier, spinning that turns into sleep, denormals off, scratch. It knows nothing of
 * programs (program.c); a run is one function called on every worker, the calling thread being worker 0.
 */
#include "runtime.h"
#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>
#include <sys/mman.h>
#if defined(__linux__)
#include <limits.h>
#include <stdio.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

/* Spinning ends after this long: two programs on the same cores must not burn each other's time. */
enum { SPIN_NS = 50000, SPIN_CROWDED_NS = 2000 };

int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
INLINE void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory");
#endif
}

/* A word that threads wait on until it changes. */
typedef struct { _Alignas(64) atomic_uint value; _Alignas(64) atomic_int sleepers; } Word;
#if defined(__linux__)
static void sleep_on(Word *w, unsigned old) { syscall(SYS_futex, &w->value, FUTEX_WAIT_PRIVATE, old, 0, 0, 0); }
static void wake_all(Word *w) { syscall(SYS_futex, &w->value, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0); }
#else
static pthread_mutex_t sleep_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t sleep_cond = PTHREAD_COND_INITIALIZER;
static void sleep_on(Word *w, unsigned old) {
  pthread_mutex_lock(&sleep_mutex);
  while (atomic_load(&w->value) == old) pthread_cond_wait(&sleep_cond, &sleep_mutex);
  pthread_mutex_unlock(&sleep_mutex);
}
static void wake_all(Word *w) {
  (void)w;
  pthread_mutex_lock(&sleep_mutex);
  pthread_cond_broadcast(&sleep_cond);
  pthread_mutex_unlock(&sleep_mutex);
}
#endif

static struct {
  atomic_int wanted;
  int alive, cores;
  pthread_t thread[MAX_THREADS];
  char *scratch[MAX_THREADS];
  int64_t scratch_bytes;
  Word start, gate;
  _Alignas(64) atomic_int arrived;
  atomic_int quit;
  void (*body)(void *, int);
  void *arg;
} pool;

static void await_change(Word *w, unsigned old) {
  const int64_t limit = pool.alive > pool.cores ? SPIN_CROWDED_NS : SPIN_NS;
  int64_t t0 = 0;
  for (;;) {
    for (int i = 0; i < 32; i++) {
      if (atomic_load_explicit(&w->value, memory_order_acquire) != old) return;
      relax();
    }
    const int64_t t = now_ns();
    if (!t0) t0 = t; else if (t - t0 > limit) break;
  }
  atomic_fetch_add(&w->sleepers, 1);
  while (atomic_load(&w->value) == old) sleep_on(w, old);
  atomic_fetch_sub(&w->sleepers, 1);
}
static void change(Word *w) {
  atomic_fetch_add(&w->value, 1);
  if (atomic_load(&w->sleepers)) wake_all(w);
}

/* Waits for all of the team; the last to arrive calls `last` while the others still wait. */
void team_barrier(int team, void (*last)(void *), void *arg) {
  if (team == 1) { last(arg); return; }
  const unsigned old = atomic_load_explicit(&pool.gate.value, memory_order_relaxed);
  if (atomic_fetch_add(&pool.arrived, 1) == team - 1) {
    last(arg);
    atomic_store_explicit(&pool.arrived, 0, memory_order_relaxed);
    change(&pool.gate);
  } else await_change(&pool.gate, old);
}

/* Denormals count as zero while kernels run; returns the former state. */
static uint64_t denormals_off(void) {
#if defined(__x86_64__)
  const unsigned old = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(old | 0x8040);
  return old;
#elif defined(__aarch64__)
  uint64_t old;
  __asm__ volatile("mrs %0, fpcr" : "=r"(old));
  __asm__ volatile("msr fpcr, %0" ::"r"(old | (1u << 24)));
  return old;
#else
  return 0;
#endif
}
static void denormals_restore(uint64_t old) {
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr((unsigned)old);
#elif defined(__aarch64__)
  __asm__ volatile("msr fpcr, %0" ::"r"(old));
#else
  (void)old;
#endif
}

typedef struct { int tid; unsigned seen; } Birth;
static void *worker(void *x) {
  const Birth birth = *(Birth *)x;
  free(x);
  unsigned seen = birth.seen;
  denormals_off();
  for (;;) {
    await_change(&pool.start, seen);
    seen++; /* every run ends in a barrier of the whole team, so `start` is never two ahead */
    if (atomic_load(&pool.quit)) return 0;
    pool.body(pool.arg, birth.tid);
  }
}

static void stop_workers(void) {
  if (pool.alive <= 1) { pool.alive = 1; return; }
  atomic_store(&pool.quit, 1);
  change(&pool.start);
  for (int i = 1; i < pool.alive; i++) pthread_join(pool.thread[i], 0);
  atomic_store(&pool.quit, 0);
  pool.alive = 1;
}
/* Makes the pool `n` threads strong, the caller included; returns how many there are (fewer where the system refuses). */
int pool_team(int n) {
  if (pool.alive == n) return n;
  stop_workers();
  for (int i = 1; i < n; i++) {
    Birth *birth = malloc(sizeof *birth);
    if (!birth) break;
    *birth = (Birth){i, atomic_load(&pool.start.value)};
    if (pthread_create(&pool.thread[i], 0, worker, birth)) { free(birth); break; }
    pool.alive = i + 1;
  }
  return pool.alive;
}

static int affinity(void) {
#if defined(__linux__)
  cpu_set_t set;
  if (!sched_getaffinity(0, sizeof set, &set)) return CPU_COUNT(&set);
#endif
  const long n = sysconf(_SC_NPROCESSORS_ONLN);
  return n > 0 ? (int)n : 1;
}
/* Whole processors that the control group grants (v2, then v1), or a large number. */
static int quota(void) {
#if defined(__linux__)
  double q = -1, period = -1;
  FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
  if (f) { if (fscanf(f, "%lf %lf", &q, &period) != 2) q = -1; fclose(f); }
  else if ((f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r"))) {
    if (fscanf(f, "%lf", &q) != 1) q = -1;
    fclose(f);
    if ((f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r"))) { if (fscanf(f, "%lf", &period) != 1) q = -1; fclose(f); }
  }
  if (q > 0 && period > 0) return q / period < 1 ? 1 : (int)(q / period);
#endif
  return MAX_THREADS;
}
int pool_threads(void) {
  int n = atomic_load(&pool.wanted);
  if (n) return n;
  pool.cores = affinity();
  n = pool.cores < quota() ? pool.cores : quota();
  n = n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
  atomic_store(&pool.wanted, n);
  return n;
}

/* Scratch of `bytes` (at least 4 MiB) for every thread; pages cost nothing until a thread touches them. */
char **pool_scratch(int n, int64_t bytes) {
  bytes = round_up(max64(bytes, 4 << 20), 1 << 16);
  if (bytes > pool.scratch_bytes) {
    for (int i = 0; i < MAX_THREADS; i++) if (pool.scratch[i]) { munmap(pool.scratch[i], pool.scratch_bytes); pool.scratch[i] = 0; }
    pool.scratch_bytes = bytes;
  }
  for (int i = 0; i < n; i++) {
    if (pool.scratch[i]) continue;
    char *m = mmap(0, pool.scratch_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED) return 0;
#if defined(MADV_HUGEPAGE)
    madvise(m, pool.scratch_bytes, MADV_HUGEPAGE);
#endif
    pool.scratch[i] = m;
  }
  return pool.scratch;
}

/*
 * Runs body(arg, tid) for tid 0..team-1; the caller is worker 0. `team` is 1 or what pool_team returned, and a body of a
 * team ends in a barrier. One run at a time: program.c holds the lock.
 */
void pool_run(int team, void (*body)(void *, int), void *arg) {
  const uint64_t old = denormals_off();
  if (team > 1) {
    pool.body = body;
    pool.arg = arg;
    change(&pool.start);
  }
  body(arg, 0);
  denormals_restore(old);
}

EXPORT int32_t nabla_threads(void) { return pool_threads(); }
/* Takes effect with the next run. */
EXPORT void nabla_set_threads(int32_t n) {
  pool_threads();
  atomic_store(&pool.wanted, n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n);
}
