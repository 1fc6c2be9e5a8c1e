/**
 * The flush: recorded nodes become values. What is asked for, what was kept and what was assigned on a device is captured
 * (now, in the caller's program order), its program found or compiled, and run. Where the backend answers at once, so does
 * the flush, without a promise; else jobs run first in, first out. A failed job rolls every version back, its own and those
 * of the jobs captured behind it, so that the state is as it was before.
 */
import type { Backend, Capture, Program, Run } from "../backends/backend.ts";
import { allocateRaw, encode, type TypedArray } from "../core/dtype.ts";
import { BackendError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import { type Node, Storage } from "../graph/node.ts";
import { constantValue } from "../graph/ops.ts";
import { primitives as p } from "../graph/primitives.ts";
import { checkRun, detectsAnomalies } from "./anomaly.ts";
import { disposeUnused, type Entry, ProgramCache } from "./cache.ts";
import { capture, captureProgress, copyCapture, staleRead } from "./capture.ts";
import { debugLevel, sayCompiled, sayRun } from "./debug.ts";
import { backendOf, openBackend } from "./device.ts";
import { deviceOf, type Pending, pendingOf, resolve } from "./pending.ts";
import { turn } from "./turn.ts";

const none: readonly Node[] = [];

/** One captured flush on its way: what to run, and how to undo what was promised for it. */
export interface Job {
  readonly entry: Entry;
  /** A copy of its own, where there is no program yet and under anomaly detection. */
  capture: Capture | null;
  readonly storages: readonly Storage[];
  readonly scalars: Float64Array;
  readonly roots: readonly Node[];
  readonly outputs: readonly Storage[];
  readonly assigns: readonly Node[];
  /** Whether it brings first values of states. */
  readonly init: boolean;
  /** Set when this job or one before it failed. */
  cancelled: { readonly error: unknown } | null;
}

/** What is in flight on a device. */
export interface Line {
  readonly device: string;
  readonly cache: ProgramCache;
  readonly pending: Pending;
  readonly jobs: Job[];
  /** Flushes that wrote to states. */
  steps: number;
  /** A job that other threads have begun and this one must end before anything else is run or read; then `tail` is null. */
  started: { readonly job: Job; readonly end: () => void } | null;
  /** Settles (never rejects) when everything queued so far is done; null when idle. */
  tail: Promise<void> | null;
  /** A failure of an enqueued step that nobody has been told of. */
  failure: { readonly error: unknown } | null;
  /** The last such failure. */
  told: unknown;
  /** The last enqueued step. */
  step: Promise<void> | null;
}

type See = (captured: Capture, job: Job) => void;

const lines = new Map<string, Line>();

/** Where the process ends with a failure that nobody has been told of, it ends with that failure. */
function tellAtExit(): void {
  for (const line of lines.values()) {
    settle(line, null);
    throwFailure(line);
  }
}

export function lineOf(device: string): Line {
  let line = lines.get(device);
  if (!line) {
    if (lines.size === 0 && typeof process === "object") process.on?.("beforeExit", tellAtExit);
    line = {
      device,
      cache: new ProgramCache(),
      pending: pendingOf(device),
      jobs: [],
      steps: 0,
      started: null,
      tail: null,
      failure: null,
      told: null,
      step: null,
    };
    lines.set(device, line);
  }
  return line;
}

/** Programs made, held, and found again on a device. */
export function programCounts(device: string): { made: number; held: number; hits: number; evicted: number } {
  const { made, size, hits, evicted } = lineOf(device).cache;
  return { made, held: size, hits, evicted };
}

/** How many flushes of a device wrote to states: what was recorded before and not flushed may be stale if it has grown. */
export const stepsOf = (device: string): number => lineOf(device).steps;

function throwFailure(line: Line): void {
  const { failure } = line;
  if (!failure) return;
  line.failure = null;
  throw failure.error;
}

/** Ends what was started. Where it fails, it is taken back with `behind`, which was captured meanwhile, and this throws. */
function settle(line: Line, behind: Job | null): void {
  const { started } = line;
  if (import.meta.forBrowsers || started === null) return; // no backend of theirs begins a run without ending it
  line.started = null;
  try {
    started.end();
  } catch (error) {
    takeBack(line, behind === null ? [started.job] : [started.job, behind]);
    throw error;
  }
  letGo(started.job);
}

/**
 * Computes `roots`, what was kept and what was assigned on `device`. Returns nothing if it was done at once, else a promise
 * of its completion. Throws (or rejects with) StaleReadError, IndexError and what else a program finds; then no state
 * has changed.
 */
export function flush(device: string, roots: readonly Node[] = none): void | Promise<void> {
  return flushLine(lineOf(device), roots, false);
}

/** As `flush`; where `early`, the work may also have been begun only, on other threads. `see` is shown what was captured. */
export function flushLine(line: Line, roots: readonly Node[], early: boolean, see?: See): void | Promise<void> {
  throwFailure(line);
  const { pending } = line;
  if (pending.inits.length > 0) {
    const inits = pending.inits;
    pending.inits = [];
    const submitted = submit(line, none, none, inits, true, false);
    if (submitted) submitted.catch(() => {}); // the job below is cancelled with the same error
  }
  let wanted = roots;
  for (let i = 0; i < roots.length; i++)
    if (roots[i].state !== null || roots[i].operation.group === "leaf") {
      wanted = prepareRoots(line, roots);
      break;
    }
  const { kept, assigns } = pending;
  if (kept.length > 0) pending.kept = [];
  if (assigns.length > 0) {
    pending.assigns = [];
    line.steps++;
  }
  // never the empty lists themselves: they fill up while the job runs
  const owed = assigns.length > 0 ? assigns : none;
  return submit(line, wanted, kept.length > 0 ? prepareRoots(line, kept) : none, owed, false, early, see);
}

/** Roots as a capture wants them: superseded assigns stand for their value, leaves that need no program get it here. */
function prepareRoots(line: Line, roots: readonly Node[]): Node[] {
  const out: Node[] = [];
  for (const root of roots) {
    if (root.storage !== null) continue;
    const last = root.state !== null && line.pending.assigns.findLast((a) => a.state === root.state) === root;
    const node = last ? root : resolve(root);
    if (node.storage === null && node.operation.group === "leaf") holdLeaf(line.device, node);
    else out.push(node);
  }
  return out;
}

/** Constants, scalars and positions asked for as they are: written by the host. */
function holdLeaf(device: string, node: Node): void {
  const n = sizeOf(node.shape);
  const values = new Float64Array(n);
  if (node.operation === p.const) values.fill(constantValue(node));
  else if (node.operation === p.scalar) values.fill(node.value);
  else if (node.operation === p.iota) {
    const axis = node.attrs["axis"] as number;
    const inner = sizeOf(node.shape.slice(axis + 1));
    for (let i = 0; i < n; i++) values[i] = Math.floor(i / inner) % node.shape[axis];
  } else throw new BackendError(`${node} has no value: a buffer without a storage`);
  const raw = allocateRaw(node.dtype, n);
  encode(node.dtype, values, raw);
  node.storage = new Storage(device, node.dtype, n, null);
  node.storage.upload = raw;
  node.depth = 0;
}

function submit(
  line: Line,
  roots: readonly Node[],
  kept: readonly Node[],
  assigns: readonly Node[],
  init: boolean,
  early: boolean,
  see?: See,
): void | Promise<void> {
  let captured: Capture;
  try {
    captured = capture(line.device, roots, kept, assigns);
  } catch (error) {
    forget(line, kept, assigns, init);
    throw error;
  }
  if (captured.roots.length === 0 && captured.assigns.length === 0) {
    settle(line, null);
    return line.tail?.then(() => throwFailure(line));
  }
  const job = promise(line, captured, assigns, init);
  see?.(captured, job);
  return dispatch(line, job, early);
}

/** Runs a job once those before it are done. */
export function dispatch(line: Line, job: Job, early: boolean): void | Promise<void> {
  settle(line, job);
  if (line.tail === null) {
    let backend: Backend | null;
    let program: Program | Promise<Program> | null = null;
    try {
      backend = openBackend(line.device);
      if (backend !== null) program = job.entry.program ?? compile(line, backend, job);
    } catch (error) {
      takeBack(line, [job]);
      throw error;
    }
    if (backend !== null && !(program instanceof Promise)) return runNow(line, backend, job, early);
  }
  return runLater(line, job);
}

/** A capture failed. What can't be read leaves the pending updates alone; an update that can't be computed undoes them all. */
function forget(line: Line, kept: readonly Node[], assigns: readonly Node[], init: boolean): void {
  const { pending } = line;
  if (init) pending.inits = [...assigns, ...pending.inits];
  else if (captureProgress.reached === "assigns") undoAssigns(assigns);
  else pending.assigns = [...assigns, ...pending.assigns];
  if (captureProgress.reached === "roots") pending.kept = [...kept, ...pending.kept];
}

/** Gives roots and assigned states the values that the job will bring: from here on they are leaves. */
function promise(line: Line, captured: Capture, assigns: readonly Node[], init: boolean): Job {
  const entry = line.cache.find(captured);
  const { roots, scalars } = captured;
  const copy = entry.program === null || detectsAnomalies() ? copyCapture(captured) : null;
  const values = entry.scalars ?? new Float64Array(scalars.length);
  entry.scalars = null;
  for (let i = 0; i < scalars.length; i++) values[i] = scalars[i].value;
  entry.jobs++;
  const outputs = new Array<Storage>(roots.length);
  for (let i = 0; i < roots.length; i++) {
    const root = roots[i];
    const storage = new Storage(line.device, root.dtype, sizeOf(root.shape), null);
    outputs[i] = storage;
    root.storage = storage;
    root.version = 0;
    root.depth = 0;
  }
  for (let i = 0; i < assigns.length; i++) {
    const node = assigns[i];
    const state = node.state as Storage;
    node.storage = state;
    node.version = ++state.version;
    node.depth = 0;
  }
  return {
    entry,
    capture: copy,
    storages: captured.storages,
    scalars: values,
    roots,
    outputs,
    assigns,
    init,
    cancelled: null,
  };
}

/** A job is over, well or not: a program that was evicted meanwhile goes with the last. */
function ended({ entry }: Job): void {
  entry.jobs--;
  if (entry.evicted) disposeUnused(entry);
}

/** After a failure: these jobs (in line order), and what was recorded on top of them, are as if never recorded. */
function takeBack(line: Line, jobs: readonly Job[]): void {
  const { pending } = line;
  const undone: Node[] = [];
  for (const job of jobs) {
    ended(job);
    for (const root of job.roots) root.storage = null;
    for (const node of job.assigns) (node.state as Storage).version--;
    if (job.init) {
      // A state whose first value failed has none to go back to; it stays owed.
      for (const node of job.assigns) node.storage = null;
      pending.inits = [...job.assigns, ...pending.inits];
    } else undone.push(...job.assigns);
  }
  undoAssigns([...undone, ...pending.assigns]);
  pending.assigns = [];
}

/** Failed or impossible assigns read the state as it is. */
function undoAssigns(assigns: readonly Node[]): void {
  for (const node of assigns) {
    node.storage = node.state;
    node.version = (node.state as Storage).version;
    node.inputs = none;
    node.depth = 0;
  }
}

/** What has a value and passes no gradient on needs its sources no more. */
function letGo(job: Job): void {
  const { roots, assigns } = job;
  ended(job);
  job.entry.scalars = job.scalars;
  for (let i = 0; i < roots.length; i++) {
    const root = roots[i];
    if ((!root.requiresGrad || root.released) && root.outputs === null) root.inputs = none;
  }
  for (let i = 0; i < assigns.length; i++) assigns[i].inputs = none;
}

function compile(line: Line, backend: Backend, job: Job): Program | Promise<Program> {
  const { entry } = job;
  if (entry.compiling) return entry.compiling;
  const start = performance.now();
  const done = (program: Program): Program => {
    entry.program = program;
    entry.compiling = null;
    if (!import.meta.forBrowsers && debugLevel > 0)
      sayCompiled(line.device, entry.id, program, performance.now() - start);
    return program;
  };
  const failed = (error: unknown): never => {
    entry.compiling = null;
    line.cache.remove(entry);
    throw error;
  };
  let program: Program | Promise<Program>;
  try {
    program = backend.compile(job.capture as Capture);
  } catch (error) {
    return failed(error);
  }
  if (program instanceof Promise) return (entry.compiling = program.then(done, failed));
  return done(program);
}

/** Memory for everything that the job touches; host data goes to the device before its first use. */
function bind(backend: Backend, job: Job): Run | Promise<Run> {
  const { storages, outputs } = job;
  const buffers = new Array<unknown>(storages.length);
  for (let i = 0; i < storages.length; i++) {
    const storage = storages[i];
    if (storage.memory === null && storage.upload instanceof Promise) return awaitUploads(backend, job);
    buffers[i] = memoryOf(backend, storage);
  }
  const results = new Array<unknown>(outputs.length);
  for (let i = 0; i < outputs.length; i++) results[i] = memoryOf(backend, outputs[i]);
  return { buffers, scalars: job.scalars, outputs: results };
}

async function awaitUploads(backend: Backend, job: Job): Promise<Run> {
  for (const storage of job.storages) if (storage.upload instanceof Promise) storage.upload = await storage.upload;
  return bind(backend, job);
}

function memoryOf(backend: Backend, storage: Storage): unknown {
  if (storage.memory === null) {
    const upload = storage.upload as TypedArray | null;
    storage.memory = (upload && backend.adopt?.(upload)) || null;
    if (storage.memory === null) {
      storage.memory = backend.allocate(storage.bytes);
      if (upload !== null) backend.write(storage.memory, upload);
    }
    storage.upload = null;
  }
  return storage.memory;
}

function start(line: Line, backend: Backend, job: Job, run: Run): void | Promise<void> {
  const { entry, capture: copy } = job;
  const program = entry.program as Program;
  job.capture = null;
  if (copy !== null && detectsAnomalies()) return checkRun(backend, program, copy, run).then(() => program.run(run));
  if (import.meta.forBrowsers || debugLevel === 0) return program.run(run);
  const before = performance.now();
  const tell = (): void => sayRun(line.device, entry.id, program, performance.now() - before);
  const result = program.run(run);
  if (result instanceof Promise) return result.then(tell);
  tell();
}

/** The short way: the line is idle, backend and program are at hand. */
function runNow(line: Line, backend: Backend, job: Job, early: boolean): void | Promise<void> {
  let result: void | Promise<void>;
  try {
    const run = bind(backend, job);
    if (!import.meta.forBrowsers && early && !(run instanceof Promise) && debugLevel === 0 && !detectsAnomalies()) {
      const end = job.entry.program?.start?.(run);
      if (end) {
        job.capture = null;
        line.started = { job, end };
        return;
      }
    }
    result = run instanceof Promise ? run.then((r) => start(line, backend, job, r)) : start(line, backend, job, run);
  } catch (error) {
    takeBack(line, [job]);
    throw error;
  }
  if (result instanceof Promise) return queue(line, job, result);
  letGo(job);
}

function runLater(line: Line, job: Job): Promise<void> {
  const before = line.tail;
  const work = async (): Promise<void> => {
    if (before) await before;
    if (job.cancelled) throw job.cancelled.error;
    const backend = await backendOf(line.device);
    if (!job.entry.program) await compile(line, backend, job);
    await start(line, backend, job, await bind(backend, job));
  };
  return queue(line, job, work());
}

/** Puts a job that has been started, or will be after those before it, at the end of the line. */
function queue(line: Line, job: Job, work: Promise<void>): Promise<void> {
  line.jobs.push(job);
  const done = work.then(
    () => {
      line.jobs.splice(line.jobs.indexOf(job), 1);
      letGo(job);
    },
    (error: unknown) => {
      const at = line.jobs.indexOf(job);
      if (at >= 0) {
        const behind = line.jobs.splice(at);
        for (const later of behind) later.cancelled = { error };
        takeBack(line, behind);
      }
      throw error;
    },
  );
  follow(line, done);
  return done;
}

/** Makes `done` the line's tail until something else is. */
function follow(line: Line, done: Promise<unknown>): void {
  const tail: Promise<void> = done
    .then(
      () => {},
      () => {},
    )
    .then(() => {
      if (line.tail === tail) line.tail = null;
    });
  line.tail = tail;
}

/**
 * Flushes as `flush`, but does not wait for the end: returns nothing, or a promise of room for the next step (one runs
 * while the next is recorded, two are never behind). A failure is thrown by the next flush, read or step on the device.
 */
export function enqueue(device: string, roots: readonly Node[] = none): void | Promise<void> {
  const line = lineOf(device);
  const done = flushLine(line, roots, true);
  if (!done) return;
  const before = line.step;
  leave(line, done);
  if (before && line.jobs.length > 1) return before.then(() => throwFailure(line));
}

/** Nobody waits for `done`: its failure is told by whatever comes next on the line. */
export function leave(line: Line, done: Promise<void>): void {
  line.step = done.catch((error: unknown) => {
    // Jobs cancelled by one failure share its error; it is told once.
    if (error !== line.told) line.failure = { error };
    line.told = error;
  });
}

/** Waits until everything recorded as owed on `device` (or on every device used) is done. */
export async function synchronize(device?: string): Promise<void> {
  for (const name of device === undefined ? [...lines.keys()] : [device]) await flush(name);
  await turn();
}

/**
 * The raw elements of `node` (16-bit floats as bits), computed first if need be; a copy. Throws StaleReadError if the version
 * that the node means has been overwritten.
 */
export function read(node: Node): TypedArray | Promise<TypedArray> {
  const device = node.storage?.device ?? deviceOf(node);
  const line = lineOf(device);
  if (node.storage === null) {
    const done = flush(device, [node]);
    if (done) return done.then(() => readStorage(line, resolve(node)));
  } else {
    settle(line, null);
    throwFailure(line);
  }
  return readStorage(line, resolve(node));
}

function readStorage(line: Line, node: Node): TypedArray | Promise<TypedArray> {
  const storage = node.storage as Storage;
  if (storage.version !== node.version) throw staleRead(node, "this tensor");
  if (storage.memory === null && storage.upload !== null && line.tail === null)
    return storage.upload instanceof Promise ? storage.upload.then((raw) => raw.slice()) : storage.upload.slice();
  const backend = line.tail === null ? openBackend(line.device) : null;
  if (backend !== null) return backend.read(memoryOf(backend, storage), storage.dtype, storage.length);
  const before = line.tail;
  const later = (async () => {
    if (before) await before;
    if (node.storage !== storage) {
      // the job that was to bring this value has failed, and was taken back
      throwFailure(line);
      throw (
        line.told ??
        new BackendError(`${node.operation.name}: its value was not computed, since an earlier step failed`)
      );
    }
    const open = await backendOf(line.device);
    if (storage.upload instanceof Promise) storage.upload = await storage.upload;
    return open.read(memoryOf(open, storage), storage.dtype, storage.length);
  })();
  follow(line, later);
  return later;
}
