/**
 * Where things lie in the shared memory: the words that all threads know, and the records of programs, phases and
 * commands. Plain numbers, in bytes; written by `program.ts`, read by the runtime's functions and by generated kernels.
 */

/** The operation that failed (0: none) and its position; written once a run. */
export const ERROR = 1024;
/** Whether a phase before this one has failed: then commands that write state are skipped. */
export const SKIP = 1032;
/** Threads that have come to the barrier, and how many barriers there were. Each has a cache line of its own. */
export const BARRIER_COUNT = 1088;
export const BARRIER_TURN = 1152;
/** Address of the threads' scratch, and how many bytes each has. */
export const SCRATCH = 1216;
export const SCRATCH_BYTES = 1220;
/** The first byte that is given away. */
export const FIRST_FREE = 4096;

/** A command. */
export const CMD = {
  /** Its function, in the table. */
  fn: 0,
  rows: 4,
  grain: 8,
  /** 1: writes state. */
  flags: 12,
  /** A command that runs on this one's finished rows, or 0. */
  post: 16,
  /** Addresses of the buffers. */
  buffers: 20,
  /** Addresses of the scalars (float64). */
  scalars: 24,
  /** Integers. */
  params: 28,
  bytes: 32,
} as const;

/** A phase: tiles are taken from `next`. A cache line each. */
export const PHASE = { next: 0, tiles: 4, count: 8, commands: 12, bytes: 64 } as const;

/** A program: phases follow at the next cache line. */
export const PROGRAM = {
  /** Phases, each as often as it runs. */
  steps: 0,
  /** The address of the phase that runs now. */
  at: 4,
  /** Address and number of the loops, inner ones first. */
  loops: 8,
  numLoops: 12,
  bytes: 64,
} as const;

/** A range of phases that runs `count` times: the addresses of its first and its last phase, and which pointers move. */
export const LOOP = { iteration: 0, count: 4, first: 8, last: 12, moves: 16, numMoves: 20, bytes: 24 } as const;

/**
 * A pointer that goes `stride` bytes further with each iteration. The second iteration begins at the pointer `start` (an
 * address, 0: none); `origin` is where the first one began.
 */
export const MOVE = { pointer: 0, stride: 4, start: 8, origin: 12, bytes: 16 } as const;
