/*
 * For aarch64.test.ts: runs recorded programs on a runtime and kernels linked into one executable, away from JavaScript.
 *   cross FILE OUT N...    every program of FILE at N threads, for each N; what memory held afterwards goes to OUT
 * FILE, in words of the machine:
 *   i64 programs, then for each: i64 words, the table (i32); i64 n, indices of kernels (i64); i64 n, scalars (f64);
 *   i64 n, for each buffer: i64 bytes, i64 known, and the bytes themselves where they are known.
 * OUT, for each N and program: i64 the error word, then all buffers but the first (the arena).
 */
#include "runtime.h"
#include <stdio.h>

extern KernelFn cross_kernels[];
typedef struct Program Program;
Program *nabla_program(const int32_t *table, int64_t words, const double *functions, int64_t num_functions);
void nabla_program_free(Program *p);
int64_t nabla_run(Program *p, const double *bufs, const double *scalars);
const char *nabla_error(void);
double nabla_alloc(double size);
void nabla_free(double pointer);
void nabla_set_threads(int32_t n);

static void die(const char *why) { fprintf(stderr, "cross: %s\n", why); exit(1); }
static void get(void *to, int64_t bytes, FILE *f) { if (bytes && fread(to, bytes, 1, f) != 1) die("the file is cut short"); }
static void put(const void *from, int64_t bytes, FILE *f) { if (bytes && fwrite(from, bytes, 1, f) != 1) die("can't write"); }
static int64_t number(FILE *f) { int64_t x; get(&x, 8, f); return x; }
static void *list(int64_t n, int64_t each, FILE *f) {
  void *p = malloc(n * each + 1);
  if (!p) die("out of memory");
  get(p, n * each, f);
  return p;
}

int main(int argc, char **argv) {
  if (argc < 4) die("usage: cross FILE OUT N...");
  FILE *out = fopen(argv[2], "wb");
  if (!out) die("can't open the output");
  for (int a = 3; a < argc; a++) {
    nabla_set_threads(atoi(argv[a]));
    FILE *in = fopen(argv[1], "rb");
    if (!in) die("can't open the input");
    for (int64_t programs = number(in); programs > 0; programs--) {
      const int64_t words = number(in);
      int32_t *table = list(words, 4, in);
      const int64_t num_functions = number(in);
      int64_t *index = list(num_functions, 8, in);
      double *functions = malloc(num_functions * 8 + 8);
      for (int64_t i = 0; i < num_functions; i++) functions[i] = (double)(intptr_t)cross_kernels[index[i]];
      const int64_t num_scalars = number(in);
      double *scalars = list(num_scalars, 8, in);
      const int64_t num_buffers = number(in);
      double *buffers = malloc(num_buffers * 8);
      int64_t *bytes = malloc(num_buffers * 8);
      for (int64_t i = 0; i < num_buffers; i++) {
        bytes[i] = number(in);
        buffers[i] = nabla_alloc(bytes[i]);
        char *memory = (char *)(intptr_t)buffers[i];
        if (number(in)) get(memory, bytes[i], in);
        else memset(memory, 0xff, bytes[i]); /* what is read before it is written is seen */
      }
      Program *p = nabla_program(table, words, functions, num_functions);
      if (!p) die(nabla_error());
      const int64_t error = nabla_run(p, buffers, scalars);
      put(&error, 8, out);
      for (int64_t i = 0; i < num_buffers; i++) {
        if (i) put((char *)(intptr_t)buffers[i], bytes[i], out);
        nabla_free(buffers[i]);
      }
      nabla_program_free(p);
      free(table); free(index); free(functions); free(scalars); free(buffers); free(bytes);
    }
    fclose(in);
  }
  return fclose(out) ? 1 : 0;
}
