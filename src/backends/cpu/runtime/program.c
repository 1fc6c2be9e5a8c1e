/*
 * Programs: decoding of the command table, and its interpreter. The phases run in order; within a phase the workers take
 * tiles of all its commands from one counter; one barrier ends a phase. Where a phase reads a weight once, as a stream, each worker has a range
 * of the tiles with a counter of its own, so that it goes on where it was, and helps with the others' when it is done: memory is read up to an
 * eighth faster than with tiles of half a megabyte in turn (Zen 4). A loop is a range of phases that is run again:
 * whoever ends its last phase moves the pointers that go along a sequence, and goes back to its first.
 *
 * The table is int32 words (native.ts, ProgramBuilder, writes it):
 *   header   magic version numCommands numPhases numBuffers numScalars scratchBytes
 *   phase    n, then n command indices                                        (numPhases times)
 *   command  fn rowsLo rowsHi grain flags epi post                            (numCommands times)
 *            nb, then nb x (slot offsetLo offsetHi)
 *            ns, then ns scalar indices
 *            np, then np x (lo hi)
 *   extra    nx, then nx x (slot offsetLo offsetHi): buffers of no command, numbered behind all those of the commands
 *   loop     first last phase, count, nm, then nm x (buffer strideLo strideHi start)   (nl, then nl times; inner ones first)
 * A 64-bit value is its low word, then its high word. fn >= 0 indexes the functions given to nabla_program; fn < 0 is
 * builtin -1 - fn (builtins.c). flags bit 0: writes state. epi and post are command indices or -1; a command that is
 * only attached stands in no phase. A buffer is bufs[slot] + offset bytes.
 */
#include "runtime.h"

enum { MAGIC = 0x4e42504c, HEADER = 7, WRITES_STATE = 1, RANGES = 8 };

typedef struct { _Alignas(64) atomic_llong next[RANGES]; int64_t tiles; int32_t first, count, streams; } Phase;
typedef struct { int32_t slot; int64_t offset; } BufferRef;
/* A pointer that goes `stride` bytes further each iteration; the second begins at pointer `start`, if that is not -1. */
typedef struct { int64_t ref, stride, start; char *origin; } Move;
typedef struct { int32_t first, last, count, iteration; Move *moves; int64_t num_moves; } Loop;
typedef struct {
  Run run;
  int32_t num_commands, num_phases, num_buffers, num_scalars, num_loops;
  int32_t steps; /* phases, each as often as it runs */
  int32_t at; /* the phase that runs now */
  Loop *loops;
  Move *moves;
  int parallel; /* some phase has work for two */
  Cmd *commands;
  uint8_t *flags;
  Phase *phases;
  int32_t *order;
  int64_t num_refs;
  BufferRef *refs;
  char **pointers; /* one for each ref */
  int64_t *params;
  double *scalars; /* this run's */
  int32_t *scalar_index;
  atomic_llong error;
  int team;
  int skip; /* the error word as it stood when this phase began: all tiles of a command are skipped, or none */
  int profiling;
  int deferred; /* started, but not begun: nobody but the caller would run it */
  atomic_int running;
  int64_t *ns; /* [MAX_THREADS][num_commands] while profiling */
} Program;

static const char *create_error = "";
EXPORT const char *nabla_error(void) { return create_error; }

static void record_failure(Run *run, int64_t op, int64_t position) {
  Program *p = (Program *)run;
  long long none = 0;
  const long long word = (long long)((uint64_t)op << 40 | ((uint64_t)position & 0xffffffffffull));
  atomic_compare_exchange_strong(&p->error, &none, word ? word : 1);
}

EXPORT void nabla_program_free(Program *p) {
  if (!p) return;
  free(p->commands); free(p->flags); free(p->phases); free(p->order); free(p->refs); free(p->pointers);
  free(p->params); free(p->scalars); free(p->scalar_index); free(p->ns); free(p->loops); free(p->moves);
  free(p);
}

typedef struct { const int32_t *w; int64_t n, at; int bad; } Reader;
static int32_t word(Reader *r) {
  if (r->at >= r->n) { r->bad = 1; return 0; }
  return r->w[r->at++];
}
static int64_t word64(Reader *r) {
  const uint32_t lo = (uint32_t)word(r);
  return (int64_t)((uint64_t)(uint32_t)word(r) << 32 | lo);
}
/* A count that the rest of the table can still hold, at `each` words an item. */
static int64_t count(Reader *r, int64_t each) {
  const int32_t n = word(r);
  if (n < 0 || n * each > r->n - r->at) { r->bad = 1; return 0; }
  return n;
}
static void *refuse(Program *p, const char *why) {
  create_error = why;
  nabla_program_free(p);
  return 0;
}

/* A list of buffers; 0 where one has no slot. */
static int buffers(Program *p, Reader *r) {
  for (int64_t k = count(r, 3); k > 0; k--) {
    BufferRef *ref = &p->refs[p->num_refs++];
    ref->slot = word(r);
    ref->offset = word64(r);
    if (ref->slot < 0 || ref->slot >= p->num_buffers) return 0;
  }
  return 1;
}

/* The loops, and how many steps they make of the phases; what is wrong with them, or null. */
static const char *loops(Program *p, Reader *r) {
  int64_t nm = 0;
  p->num_loops = (int32_t)count(r, 4);
  for (int32_t i = 0; i < p->num_loops; i++) {
    Loop *l = &p->loops[i];
    l->first = word(r);
    l->last = word(r);
    l->count = word(r);
    l->moves = p->moves + nm;
    l->num_moves = count(r, 4);
    if (l->first < 0 || l->last < l->first || l->last >= p->num_phases || l->count < 1) return "a loop over phases that do not exist";
    for (int64_t k = 0; k < l->num_moves; k++) {
      Move *m = &p->moves[nm++];
      m->ref = word(r);
      m->stride = word64(r);
      m->start = word(r);
      if (m->ref < 0 || m->ref >= p->num_refs || m->start < -1 || m->start >= p->num_refs) return "a loop that moves a buffer that does not exist";
    }
    for (int32_t k = 0; k < i; k++) { /* apart, or one inside the other */
      const Loop *in = &p->loops[k];
      if (!(in->last < l->first || in->first > l->last || (in->first >= l->first && in->last <= l->last)))
        return "loops that overlap, or an outer one before an inner one";
    }
  }
  int64_t steps = 0;
  for (int32_t i = 0; i < p->num_phases; i++) {
    int64_t times = 1;
    for (int32_t k = 0; k < p->num_loops && times <= INT32_MAX; k++)
      if (p->loops[k].first <= i && i <= p->loops[k].last) times *= p->loops[k].count;
    steps += times;
    if (steps > INT32_MAX) return "a program of too many steps";
  }
  p->steps = (int32_t)steps;
  return 0;
}

/* Decodes a table; null on a table that is not sound (nabla_error says why). Functions are pointers held in doubles. */
EXPORT Program *nabla_program(const int32_t *table, int64_t words, const double *functions, int64_t num_functions) {
  Reader r = {table, words, 0, 0};
  if (words < HEADER || word(&r) != MAGIC) return refuse(0, "not a command table");
  if (word(&r) != NABLA_ABI_VERSION) return refuse(0, "a command table of another version");
  Program *p = calloc(1, sizeof *p);
  if (!p) return refuse(0, "out of memory");
  p->num_commands = word(&r);
  p->num_phases = word(&r);
  p->num_buffers = word(&r);
  p->num_scalars = word(&r);
  p->run.scratchBytes = word(&r);
  p->run.fail = record_failure;
  if (p->num_commands < 0 || p->num_phases < 0 || p->num_commands > words || p->num_phases > words || p->num_buffers < 0 ||
      p->num_scalars < 0 || p->run.scratchBytes < 0) return refuse(p, "a header with impossible counts");
  /* every list is at most as long as the table */
  p->commands = calloc(p->num_commands + 1, sizeof(Cmd));
  p->flags = calloc(p->num_commands + 1, 1);
  p->phases = aligned_alloc(64, (p->num_phases + 1) * sizeof(Phase));
  p->order = calloc(words, 4);
  p->refs = calloc(words, sizeof(BufferRef));
  p->pointers = calloc(words, sizeof(char *));
  p->params = calloc(words, 8);
  p->scalars = calloc(p->num_scalars + 1, 8);
  p->scalar_index = calloc(words, 4);
  p->loops = calloc(words, sizeof(Loop));
  p->moves = calloc(words, sizeof(Move));
  if (!p->loops || !p->moves || !p->commands || !p->flags || !p->phases || !p->order || !p->refs || !p->pointers || !p->params || !p->scalars || !p->scalar_index)
    return refuse(p, "out of memory");
  memset(p->phases, 0, (p->num_phases + 1) * sizeof(Phase));

  int32_t at = 0;
  for (int32_t i = 0; i < p->num_phases; i++) {
    Phase *phase = &p->phases[i];
    phase->first = at;
    phase->count = (int32_t)count(&r, 1);
    for (int32_t k = 0; k < phase->count; k++) {
      const int32_t c = word(&r);
      if (c < 0 || c >= p->num_commands) return refuse(p, "a phase names a command that does not exist");
      p->order[at++] = c;
    }
  }
  int64_t np = 0, ns = 0;
  for (int32_t i = 0; i < p->num_commands && !r.bad; i++) {
    Cmd *c = &p->commands[i];
    const int32_t fn = word(&r);
    if (fn >= num_functions || (fn < 0 && -1 - fn >= nabla_builtin_count)) return refuse(p, "a command names a function that does not exist");
    c->fn = fn < 0 ? nabla_builtins[-1 - fn].fn : (KernelFn)(intptr_t)functions[fn];
    if (!c->fn) return refuse(p, "a null function");
    c->rows = word64(&r);
    c->grain = word(&r);
    p->flags[i] = (uint8_t)word(&r);
    const int32_t epi = word(&r), post = word(&r);
    if (c->rows < 0 || c->grain < 1) return refuse(p, "rows below 0 or a grain below 1");
    if (epi < -1 || epi >= p->num_commands || post < -1 || post >= p->num_commands) return refuse(p, "an attached command that does not exist");
    c->epi = epi < 0 ? 0 : &p->commands[epi];
    c->post = post < 0 ? 0 : &p->commands[post];
    c->run = &p->run;
    c->s = p->scalars;
    c->b = p->pointers + p->num_refs;
    if (!buffers(p, &r)) return refuse(p, "a buffer slot that does not exist");
    c->si = p->scalar_index + ns;
    for (int64_t k = count(&r, 1); k > 0; k--) {
      const int32_t s = word(&r);
      if (s < 0 || s >= p->num_scalars) return refuse(p, "a scalar slot that does not exist");
      p->scalar_index[ns++] = s;
    }
    c->p = p->params + np;
    for (int64_t k = count(&r, 2); k > 0; k--) p->params[np++] = word64(&r);
  }
  if (!buffers(p, &r)) return refuse(p, "a buffer slot that does not exist");
  const char *wrong = loops(p, &r);
  if (r.bad || r.at != words) return refuse(p, "a table that is too short or too long");
  if (wrong) return refuse(p, wrong);
  for (int32_t i = 0; i < p->num_phases; i++) {
    Phase *phase = &p->phases[i];
    for (int32_t k = 0; k < phase->count; k++) {
      const Cmd *c = &p->commands[p->order[phase->first + k]];
      phase->tiles += ceil_div(c->rows, c->grain);
      phase->streams |= c->fn == k_gemm_skinny || c->fn == k_block_linear || c->fn == k_stored_linear;
    }
    if (phase->tiles > 1) p->parallel = 1;
  }
  return p;
}

/* How many ranges a phase's tiles are in, and where each ends. */
INLINE int ranges(const Program *p, const Phase *phase) { return phase->streams ? (int)min64(p->team, RANGES) : 1; }
INLINE int64_t range_end(const Phase *phase, int range, int ranges) { return phase->tiles * (range + 1) / ranges; }
static void open_phase(const Program *p, Phase *phase) {
  const int n = ranges(p, phase);
  for (int r = 0; r < n; r++) atomic_store_explicit(&phase->next[r], r ? range_end(phase, r - 1, n) : 0, memory_order_relaxed);
}

/* Takes a loop to its next iteration, or, behind its last, back to where it began; whether there is a next. */
static int iterate(Program *p, Loop *l) {
  const int again = ++l->iteration < l->count;
  for (int64_t k = 0; k < l->num_moves; k++) {
    Move *m = &l->moves[k];
    char **at = &p->pointers[m->ref];
    if (!again) *at = m->start >= 0 && l->count > 1 ? m->origin : *at - m->stride * (l->count - 1);
    else if (l->iteration == 1 && m->start >= 0) {
      m->origin = *at;
      *at = p->pointers[m->start];
    } else *at += m->stride;
  }
  if (!again) l->iteration = 0;
  else for (int32_t i = l->first; i <= l->last; i++) open_phase(p, &p->phases[i]);
  return again;
}

/* Called by the last member to arrive, while the others wait. */
static void phase_done(void *x) {
  Program *p = x;
  p->skip = atomic_load_explicit(&p->error, memory_order_relaxed) != 0;
  for (int32_t i = 0; i < p->num_loops; i++)
    if (p->loops[i].last == p->at && iterate(p, &p->loops[i])) {
      p->at = p->loops[i].first;
      return;
    }
  p->at++;
}

/* The work of one member, from the step at which it joined. */
static void interpret(void *x, int tid, int32_t step) {
  Program *p = x;
  const int profiling = p->profiling;
  /* once the last phase has ended the caller may free the program: nothing of it is read from there on */
  for (const int32_t steps = p->steps; step < steps; step++) {
    Phase *phase = &p->phases[p->at];
    const int32_t *order = p->order + phase->first;
    const int n = ranges(p, phase);
    for (int i = 0; i < n; i++) { /* its own range first */
      const int range = (tid * n / p->team + i) % n;
      const int64_t end = range_end(phase, range, n);
      int64_t base = 0, tiles = 0, t;
      int32_t k = -1;
      while ((t = atomic_fetch_add_explicit(&phase->next[range], 1, memory_order_relaxed)) < end) {
        while (t >= base + tiles) { /* tiles come in rising order, so the search goes on from the last command */
          base += tiles;
          k++;
          tiles = ceil_div(p->commands[order[k]].rows, p->commands[order[k]].grain);
        }
        const Cmd *c = &p->commands[order[k]];
        if (p->skip && (p->flags[order[k]] & WRITES_STATE)) continue;
        const int64_t r0 = (t - base) * c->grain, r1 = min64(r0 + c->grain, c->rows), t0 = profiling ? now_ns() : 0;
        c->fn(c, r0, r1, tid);
        if (profiling) p->ns[(int64_t)tid * p->num_commands + order[k]] += now_ns() - t0;
      }
    }
    pool_phase_end(step + 1 == steps, phase_done, p);
  }
}

/* Begins the run on a pool that the caller holds, with a team of `team`. Returns 0 without scratch. */
static int begin(Program *p, int team) {
  if (!(p->run.scratch = pool_scratch(team, p->run.scratchBytes))) return 0;
  p->team = team;
  for (int32_t i = 0; i < p->num_phases; i++) open_phase(p, &p->phases[i]);
  atomic_store(&p->error, 0);
  p->skip = 0;
  p->at = 0;
  pool_begin(team > 1, interpret, p, &p->running);
  return 1;
}

enum { STARTED = 0, BUSY = 1, NO_SCRATCH = -1 };

/*
 * Starts a run: the other workers begin; nabla_finish, on this thread or another, must follow. The arguments are copied;
 * buffers are pointers held in doubles. While somebody else's run is under way, waits for its end, or does nothing and
 * returns BUSY if not `wait`.
 */
EXPORT int32_t nabla_start(Program *p, const double *bufs, const double *scalars, int32_t wait) {
  const int threads = pool_threads(), together = p->parallel && threads > 1;
  /* what has no other worker waits for nabla_finish without the pool: others could wait for it for ever */
  if (together && !pool_acquire(wait)) return BUSY;
  for (int64_t i = 0; i < p->num_refs; i++) p->pointers[i] = (char *)(intptr_t)bufs[p->refs[i].slot] + p->refs[i].offset;
  memcpy(p->scalars, scalars, p->num_scalars * sizeof *scalars);
  const int team = together ? pool_team(threads) : 1;
  p->deferred = team == 1;
  if (!p->deferred && !begin(p, team)) p->deferred = 1;
  if (together && p->deferred) pool_release();
  return STARTED;
}

/* Helps a started run to its end; 0, or the error word. -1 where scratch could not be had. */
EXPORT int64_t nabla_finish(Program *p) {
  if (!p->num_phases) return 0;
  if (p->deferred) {
    p->deferred = 0;
    pool_acquire(1);
    if (!begin(p, 1)) {
      pool_release();
      return NO_SCRATCH;
    }
  }
  pool_finish(&p->running);
  return p->run.error = atomic_load(&p->error);
}

EXPORT int64_t nabla_run(Program *p, const double *bufs, const double *scalars) {
  nabla_start(p, bufs, scalars, 1);
  return nabla_finish(p);
}

/* Keeps the program on the calling thread, whatever its tiles: for one that is done before others would have woken. */
EXPORT void nabla_serial(Program *p) { p->parallel = 0; }

/* Turns the profile on (counts from zero) or off. */
EXPORT int32_t nabla_profile(Program *p, int32_t on) {
  pool_acquire(1);
  const size_t n = (size_t)MAX_THREADS * (p->num_commands + 1);
  if (on && !p->ns) p->ns = calloc(n, 8);
  else if (on) memset(p->ns, 0, n * 8);
  p->profiling = on && p->ns;
  pool_release();
  return p->profiling;
}
/* Nanoseconds of each command, summed over the threads (attached commands count with their owner). */
EXPORT void nabla_profile_read(Program *p, double *out) {
  pool_acquire(1);
  for (int32_t c = 0; c < p->num_commands; c++) {
    out[c] = 0;
    for (int t = 0; p->ns && t < MAX_THREADS; t++) out[c] += (double)p->ns[(int64_t)t * p->num_commands + c];
  }
  pool_release();
}
