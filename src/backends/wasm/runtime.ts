/**
 * The runtime module: the interpreter of programs and the kernels that no capture changes. Every thread has an instance of
 * it over the one memory. Written here, encoded once a process; what programs bring is `emit.ts`'s.
 *
 * A program is a list of phases, run in order; loops are ranges of them that run again, with pointers that move. Within a
 * phase the threads take tiles of all its commands from one counter; a barrier ends it. Nothing but the order in which
 * tiles are taken depends on the number of threads.
 */
import { attentionKernels } from "./attention.ts";
import { ceilDiv, min } from "./command.ts";
import { convKernels } from "./conv.ts";
import { call, type Func, type Local } from "./function.ts";
import { gemmKernels, productParts } from "./gemm.ts";
import { indexedKernels } from "./indexed.ts";
import { atomic32, constant, i32, select } from "./instructions.ts";
import { BARRIER_COUNT, BARRIER_TURN, CMD, ERROR, LOOP, MOVE, PHASE, PROGRAM, SKIP } from "./layout.ts";
import { type MemoryImport, Module } from "./module.ts";

/** Turns of waiting before a thread goes to sleep. */
const SPINS = 4000;

/** run(program, tid, team): this thread's part of a run. A team of more than one may sleep. */
function interpreter(m: Module, advance: Func): Func {
  const f = m.function(["i32", "i32", "i32"]);
  const [program, tid, team] = f.args;
  const kernel = m.type({ params: ["i32", "i32", "i32", "i32"], results: [] });
  // behind the last barrier nothing of the program is read: the caller may free it
  f.for(0, i32.load(program, PROGRAM.steps), 1, () => {
    const phase = f.let(i32.load(program, PROGRAM.at));
    const total = f.let(i32.load(phase, PHASE.tiles));
    const order = f.let(i32.load(phase, PHASE.commands));
    const skip = f.let(i32.load(SKIP));
    const [base, tiles, at] = [f.let(0), f.let(0), f.let(i32.sub(order, 4))];
    const [cmd, rows, grain] = [f.let(0), f.let(0), f.let(1)];
    f.block((done) => {
      f.loop((again) => {
        const t = f.let(atomic32.add(phase, 1)); // PHASE.next
        done(i32.ge_s(t, total));
        // tiles come in rising order, so the search goes on from the last command
        f.while(i32.ge_s(t, i32.add(base, tiles)), () => {
          f.bump(base, tiles);
          f.bump(at, 4);
          f.set(cmd, i32.load(at));
          f.set(rows, i32.load(cmd, CMD.rows));
          f.set(grain, i32.load(cmd, CMD.grain));
          f.set(tiles, ceilDiv(rows, grain));
        });
        f.if(i32.eqz(i32.and(skip, i32.load(cmd, CMD.flags))), () => {
          const r0 = f.let(i32.mul(i32.sub(t, base), grain));
          f.callIndirect(kernel, i32.load(cmd, CMD.fn), cmd, r0, min(i32.add(r0, grain), rows), tid);
        });
        again(1);
      });
    });
    barrier(f, team, () => f.call(advance, program));
  });
  return f;
}

/** All threads come here before any goes on; the last one ends the phase while the others wait. */
function barrier(f: Func, team: Local, endPhase: () => void): void {
  f.if(i32.eq(team, 1), endPhase, () => {
    const turn = f.let(atomic32.load(BARRIER_TURN));
    f.if(
      i32.eq(i32.add(atomic32.add(BARRIER_COUNT, 1), 1), team),
      () => {
        endPhase();
        f.atomicStore(BARRIER_COUNT, 0);
        f.atomicStore(BARRIER_TURN, i32.add(turn, 1));
        f.drop(atomic32.notify(BARRIER_TURN, team));
      },
      () => {
        const spins = f.let(SPINS);
        f.while(i32.eq(atomic32.load(BARRIER_TURN), turn), () => {
          f.if(
            i32.gt_s(spins, 0),
            () => f.bump(spins, -1),
            () => f.drop(atomic32.wait(BARRIER_TURN, turn, constant.i64(-1))),
          );
        });
      },
    );
  });
}

/** advance(program): ends the phase that ran. Looks whether it has failed, and goes to the next, or to a loop's first. */
function phaseEnd(m: Module): Func {
  const iterate = iteration(m);
  const f = m.function(["i32"]);
  const [program] = f.args;
  f.store("i32", SKIP, i32.ne(i32.load(ERROR), 0));
  const phase = f.let(i32.load(program, PROGRAM.at));
  const loop = f.let(i32.load(program, PROGRAM.loops));
  f.for(0, i32.load(program, PROGRAM.numLoops), 1, () => {
    f.if(i32.eq(i32.load(loop, LOOP.last), phase), () => {
      f.if(call(iterate, loop), () => {
        f.store("i32", program, i32.load(loop, LOOP.first), PROGRAM.at);
        f.return();
      });
    });
    f.bump(loop, LOOP.bytes);
  });
  f.store("i32", program, i32.add(phase, PHASE.bytes), PROGRAM.at);
  return f;
}

/** Takes a loop to its next iteration, or, behind its last, its pointers to where they began; whether there is a next. */
function iteration(m: Module): Func {
  const f = m.function(["i32"], ["i32"]);
  const [loop] = f.args;
  const count = f.let(i32.load(loop, LOOP.count));
  const done = f.let(i32.add(i32.load(loop, LOOP.iteration), 1));
  const again = f.let(i32.lt_s(done, count));
  const move = f.let(i32.load(loop, LOOP.moves));
  f.for(0, i32.load(loop, LOOP.numMoves), 1, () => {
    const pointer = f.let(i32.load(move, MOVE.pointer));
    const stride = f.let(i32.load(move, MOVE.stride));
    const start = f.let(i32.load(move, MOVE.start));
    const now = f.let(i32.load(pointer));
    const to = f.let(i32.add(now, stride));
    f.if(
      again,
      () =>
        f.if(i32.and(i32.eq(done, 1), i32.ne(start, 0)), () => {
          f.store("i32", move, now, MOVE.origin);
          f.set(to, i32.load(start));
        }),
      () =>
        f.if(
          i32.and(i32.ne(start, 0), i32.gt_s(count, 1)),
          () => f.set(to, i32.load(move, MOVE.origin)),
          () => f.set(to, i32.sub(now, i32.mul(stride, i32.sub(count, 1)))),
        ),
    );
    f.store("i32", pointer, to);
    f.bump(move, MOVE.bytes);
  });
  f.store("i32", loop, select(again, done, constant.i32(0)), LOOP.iteration);
  f.if(again, () => {
    const last = f.let(i32.load(loop, LOOP.last));
    const phase = f.let(i32.sub(i32.load(loop, LOOP.first), PHASE.bytes));
    f.while(i32.ne(phase, last), () => {
      f.bump(phase, PHASE.bytes);
      f.store("i32", phase, 0, PHASE.next);
    });
  });
  f.result(again);
  return f;
}

/** command(cmd): all tiles of one command in this thread; what the profile measures. */
function oneCommand(m: Module): Func {
  const f = m.function(["i32"]);
  const [cmd] = f.args;
  const kernel = m.type({ params: ["i32", "i32", "i32", "i32"], results: [] });
  f.if(i32.and(i32.load(SKIP), i32.load(cmd, CMD.flags)), () => f.return());
  const rows = f.let(i32.load(cmd, CMD.rows));
  const grain = f.let(i32.load(cmd, CMD.grain));
  f.for(0, rows, grain, (r0) => {
    f.callIndirect(kernel, i32.load(cmd, CMD.fn), cmd, r0, min(i32.add(r0, grain), rows), 0);
  });
  return f;
}

export interface Runtime {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Where each kernel is in the table. */
  readonly kernels: ReadonlyMap<string, number>;
}

export function encodeRuntime(memory: MemoryImport): Runtime {
  const m = new Module(memory, true);
  const advance = phaseEnd(m);
  m.export("run", interpreter(m, advance));
  if (!import.meta.forBrowsers) m.export("command", oneCommand(m)); // the profile's
  m.export("advance", advance);
  const parts = productParts(m);
  const all = {
    ...gemmKernels(m, parts),
    ...attentionKernels(m, parts),
    ...convKernels(m, parts),
    ...indexedKernels(m),
  };
  const kernels = new Map<string, number>();
  for (const [name, f] of Object.entries(all)) {
    kernels.set(name, kernels.size);
    m.kernel(f);
  }
  return { bytes: m.encode(), kernels };
}
