/**
 * The lock of a run's folder: one process trains in it at a time. The file names the process that holds it; one that a killed
 * process has left is taken over. On other machines' processes nothing can be said, so their locks are believed.
 */
import { linkSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { NablaError } from "../core/errors.ts";
import { fileError } from "../formats/atomic.ts";

/** A folder that is not the run that a command needs, or that is in use. */
export class RunError extends NablaError {
  override name = "RunError";
}

export const lockName = "run.lock";

interface Holder {
  readonly pid: number;
  readonly host: string;
  /** When the process began, in the kernel's ticks: numbers of processes are given out again. Null where there is no /proc. */
  readonly began: string | null;
}

/** Locks that this process holds: path → the text that it wrote. */
const held = new Map<string, string>();
let watching = false;

function beginningOf(pid: number): string | null {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8");
    return text.slice(text.lastIndexOf(")") + 2).split(" ")[19] ?? null; // field 22; the name in brackets may hold anything
  } catch {
    return null;
  }
}

/** Whether the process that wrote the lock is still there. */
function isAlive({ pid, host, began }: Holder): boolean {
  if (host !== hostname()) return true;
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ESRCH") return false; // else it is another user's
  }
  return began === null || beginningOf(pid) === began;
}

function readLock(path: string): { readonly text: string; readonly holder: Holder | null } | null {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw fileError("read", path, error);
  }
  try {
    const holder = JSON.parse(text) as Holder;
    return { text, holder: typeof holder?.pid === "number" ? holder : null };
  } catch {
    return { text, holder: null };
  }
}

/** Puts a whole lock there, or gives false where there is one: a second name for a file is made by one process only. */
function place(path: string, text: string): boolean {
  const aside = `${path}.${process.pid}.tmp`;
  try {
    writeFileSync(aside, text);
    linkSync(aside, path);
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST") return false;
    if (code !== "EPERM" && code !== "ENOTSUP" && code !== "ENOSYS") throw fileError("write", path, error);
  } finally {
    rmSync(aside, { force: true });
  }
  // a file system without second names
  try {
    writeFileSync(path, text, { flag: "wx" });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw fileError("write", path, error);
  }
}

/**
 * Takes the lock of a run's folder until `unlockRun` or the end of the process; `say` is told where a dead process's lock was
 * taken over. Throws RunError where another process holds it.
 */
export function lockRun(folder: string, say: (text: string) => void = console.log): void {
  const path = join(folder, lockName);
  if (held.has(path)) return;
  const text = JSON.stringify({ pid: process.pid, host: hostname(), began: beginningOf(process.pid) } satisfies Holder);
  while (!place(path, text)) {
    const found = readLock(path);
    if (found === null) continue; // given back meanwhile
    const { holder } = found;
    if (holder === null)
      throw new RunError(`${path} is not a lock that can be read; if no other process trains there, remove the file`);
    if (isAlive(holder)) {
      const where = holder.host === hostname() ? "" : ` on ${holder.host}`;
      throw new RunError(
        `${folder} is in use: process ${holder.pid}${where} trains there. Wait for its end or stop it; if there is no such process, remove ${path}`,
      );
    }
    // renamed first: of several that find it dead, one gets this very file
    const aside = `${path}.${process.pid}.dead`;
    try {
      renameSync(path, aside);
    } catch {
      continue; // somebody else was faster
    }
    const taken = readLock(aside);
    if (taken?.text === found.text) say(`the lock of process ${holder.pid}, which is gone, is taken over`);
    else if (taken) place(path, taken.text); // it was another's new one
    rmSync(aside, { force: true });
  }
  held.set(path, text);
  if (!watching) process.on("exit", unlockAll);
  watching = true;
}

/** Gives the lock back, if this process holds it. */
export function unlockRun(folder: string): void {
  give(join(folder, lockName));
}

function unlockAll(): void {
  for (const path of held.keys()) give(path);
}

function give(path: string): void {
  const text = held.get(path);
  held.delete(path);
  try {
    if (text !== undefined && readFileSync(path, "utf8") === text) rmSync(path, { force: true });
  } catch {
    // the folder is gone
  }
}
