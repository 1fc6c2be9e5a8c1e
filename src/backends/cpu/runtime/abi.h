/*
 * The binary interface between the runtime and every kernel, generated or built in: the command record and the run.
 * It includes nothing, so that a generated unit can carry its text; it is not the encoding of a program (program.c).
 */
#ifndef NABLA_ABI_H
#define NABLA_ABI_H
#define NABLA_ABI_VERSION 2
typedef __INT64_TYPE__ nb_i64;
typedef __INT32_TYPE__ nb_i32;

typedef struct Cmd Cmd;
typedef struct Run Run;

/* Computes rows [r0, r1) on worker `tid`; r0 is a multiple of c->grain (an attached `post` gets its owner's blocks). */
typedef void (*KernelFn)(const Cmd *c, nb_i64 r0, nb_i64 r1, int tid);
/* Gets one finished tile of accumulators, T[r * ldt + j] = C[i0 + r, j0 + j], and stores the result itself. */
typedef void (*EpilogueFn)(const Cmd *c, const float *T, nb_i64 ldt, nb_i64 i0, nb_i64 j0, nb_i64 mr, nb_i64 nr);

struct Cmd {
  KernelFn fn;
  char **b;               /* this command's buffers, in its own parameter order */
  const double *s;        /* the program's whole scalar table */
  const nb_i32 *si;       /* value k is s[si[k]] */
  const nb_i64 *p;        /* integer parameters */
  nb_i64 rows, grain;     /* a tile is `grain` rows */
  const Cmd *epi, *post;  /* attached commands, or null */
  Run *run;
};

struct Run {
  char **scratch;         /* scratch[tid]: 64-byte aligned, at least 4 MiB and what the program asked for */
  nb_i64 scratchBytes;
  void (*fail)(Run *run, nb_i64 op, nb_i64 position);
  nb_i64 error;           /* 0, or op << 40 | position of the first failure; written once */
};

/* Records a failure: op in 1..2^23-1, position below 2^40. Later commands that write state are then skipped. */
static inline __attribute__((unused)) void nabla_fail(Run *run, nb_i64 op, nb_i64 position) { run->fail(run, op, position); }
#endif
