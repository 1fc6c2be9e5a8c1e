/*
 * The thread pool: threads, phases, spinning that turns into sleep, denormals off, scratch. It knows nothing of programs
 * (program.c). A job is one function that every member of its team calls. Members join when they come: a phase ends when
 * all who have joined have arrived, so nobody waits for a thread that is still asleep, and the thread that began a job
 * may do something else first and join at the end, as worker 0.
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

/*
 * The word of a job: phase, members, arrived. CLOSED with members: the last to arrive ends the phase, nobody may join or
 * arrive; CLOSED without members: there is no job.
 */
#define ARRIVED 0xffffull
#define MEMBER 0x10000ull
#define MEMBERS 0xffff0000ull
#define PHASE (1ull << 32)
#define CLOSED (1ull << 63)

static struct {
  atomic_int wanted;
  int alive, cores;
  pthread_t thread[MAX_THREADS];
  char *scratch[MAX_THREADS];
  int64_t scratch_bytes;
  Word start, gate;
  _Alignas(64) _Atomic uint64_t job; /* who is in it and where it is: see below */
  atomic_int quit;
  Job body;
  void *arg;
  pthread_mutex_t lock;
  pthread_cond_t freed;
  int busy;
  atomic_int *running;
} pool = {.job = CLOSED, .lock = PTHREAD_MUTEX_INITIALIZER, .freed = PTHREAD_COND_INITIALIZER};

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

/* Joins the job there is; its phase, or -1 where there is none (any more). */
static int32_t join(void) {
  uint64_t word = atomic_load(&pool.job);
  for (;;) {
    if (!(word & CLOSED)) {
      if (atomic_compare_exchange_weak(&pool.job, &word, word + MEMBER)) return (int32_t)(word / PHASE);
    } else if (word & MEMBERS) {
      relax();
      word = atomic_load(&pool.job);
    } else return -1;
  }
}

/* Ends a phase for one member: waits for the others; the last to arrive calls `done` first. */
void pool_phase_end(int final, void (*done)(void *), void *arg) {
  const unsigned old = atomic_load(&pool.gate.value);
  uint64_t word = atomic_load(&pool.job);
  for (;;) {
    if (word & CLOSED) { /* who ended the phase before is about to open this one */
      relax();
      word = atomic_load(&pool.job);
    } else if ((word & ARRIVED) + 1 < (word & MEMBERS) / MEMBER) {
      if (!atomic_compare_exchange_weak(&pool.job, &word, word + 1)) continue;
      await_change(&pool.gate, old);
      return;
    } else if (atomic_compare_exchange_weak(&pool.job, &word, word | CLOSED)) break;
  }
  done(arg);
  /* the gate first: who joins the open job must wait for the next change, not for this one */
  atomic_fetch_add(&pool.gate.value, 1);
  atomic_store(&pool.job, final ? CLOSED : (word & MEMBERS) + (word / PHASE + 1) * PHASE);
  if (atomic_load(&pool.gate.sleepers)) wake_all(&pool.gate);
  if (!final) return;
  pthread_mutex_lock(&pool.lock);
  atomic_store(pool.running, 0);
  pool.busy = 0;
  pthread_cond_broadcast(&pool.freed);
  pthread_mutex_unlock(&pool.lock);
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
    seen = atomic_load(&pool.start.value);
    if (atomic_load(&pool.quit)) return 0;
    const int32_t phase = join(); /* who comes too late finds none: the others have done it */
    if (phase >= 0) pool.body(pool.arg, birth.tid, phase);
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
/*
 * Makes the pool `n` threads strong, the caller included; returns how many there are (fewer where the system refuses).
 * The caller holds the pool.
 */
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

/*
 * Scratch of `bytes` (at least 4 MiB of addresses) for every thread; pages cost nothing until a thread touches them, and a
 * huge page is asked for only where half of it at least is used.
 */
char **pool_scratch(int n, int64_t bytes) {
  const int huge = bytes >= 1 << 20;
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
    if (huge) madvise(m, pool.scratch_bytes, MADV_HUGEPAGE);
#endif
    pool.scratch[i] = m;
  }
  return pool.scratch;
}

/* Takes the pool: one job at a time. Where it is taken, waits, or returns 0 if not `wait`. */
int pool_acquire(int wait) {
  pthread_mutex_lock(&pool.lock);
  while (pool.busy && wait) pthread_cond_wait(&pool.freed, &pool.lock);
  const int free = !pool.busy;
  pool.busy = 1;
  pthread_mutex_unlock(&pool.lock);
  return free;
}
/* Gives back a pool on which no job was begun. */
void pool_release(void) {
  pthread_mutex_lock(&pool.lock);
  pool.busy = 0;
  pthread_cond_broadcast(&pool.freed);
  pthread_mutex_unlock(&pool.lock);
}
/*
 * Begins a job on a pool that the caller holds: the workers, if they are to be woken, call body(arg, tid, phase) with the
 * phase at which they join. The end of the last phase clears `running` and gives the pool back.
 */
void pool_begin(int wake, Job body, void *arg, atomic_int *running) {
  pool.body = body;
  pool.arg = arg;
  pool.running = running;
  atomic_store(running, 1);
  atomic_store(&pool.job, 0);
  if (wake) change(&pool.start);
}
/* Joins the job of `running` as worker 0, if it is not done, and returns when it is. */
void pool_finish(atomic_int *running) {
  pthread_mutex_lock(&pool.lock);
  const int32_t phase = atomic_load(running) ? join() : -1; /* the pool can't get another job meanwhile */
  pthread_mutex_unlock(&pool.lock);
  if (phase >= 0) {
    const uint64_t old = denormals_off();
    pool.body(pool.arg, 0, phase);
    denormals_restore(old);
  }
  pthread_mutex_lock(&pool.lock);
  while (atomic_load(running)) pthread_cond_wait(&pool.freed, &pool.lock);
  pthread_mutex_unlock(&pool.lock);
}

EXPORT int32_t nabla_threads(void) { return pool_threads(); }
/* Takes effect with the next run. */
EXPORT void nabla_set_threads(int32_t n) {
  pool_threads();
  atomic_store(&pool.wanted, n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n);
}
