/**
 * Anomaly detection (torch.autograd.set_detect_anomaly): before a flush writes anything, its results are computed aside and
 * searched for NaN and infinity. Where there is one, the work is done again with every operation's value asked for, to
 * name the first that made it out of finite inputs. Slow; for finding a fault.
 */
import type { Backend, Capture, Program, Run } from "../backends/backend.ts";
import { decode, dtypes, isFloat, type TypedArray } from "../core/dtype.ts";
import { AnomalyError } from "../core/errors.ts";
import { showShape, sizeOf } from "../core/shape.ts";
import type { Node } from "../graph/node.ts";

let detecting = false;

export const detectsAnomalies = (): boolean => detecting;

/** Turns the detection on or off; returns what it was. Flushes then throw AnomalyError and leave the state as it was. */
export function setDetectAnomaly(enabled: boolean): boolean {
  const before = detecting;
  detecting = enabled;
  return before;
}

/** Programs that compute what a program writes, aside. */
const checks = new WeakMap<Program, Program>();

const isLeaf = (node: Node): boolean => node.storage !== null || node.operation.group === "leaf";
const bytesOf = (node: Node): number => sizeOf(node.shape) * dtypes[node.dtype].bytes;

/** Throws AnomalyError if `program`, made from `capture`, would give or write a value that is not finite. */
export async function checkRun(backend: Backend, program: Program, capture: Capture, run: Run): Promise<void> {
  const values = capture.assigns.map((a) => a.value);
  const roots = [...new Set([...capture.roots, ...values])].filter((v) => !isLeaf(v) && isFloat(v.dtype));
  if (roots.length === 0) return;
  let check = checks.get(program);
  if (!check) checks.set(program, (check = await backend.compile({ ...capture, roots, assigns: [] })));
  const outputs = roots.map((node) => backend.allocate(bytesOf(node)));
  await check.run({ ...run, outputs });
  for (let i = 0; i < roots.length; i++) {
    const raw = await backend.read(outputs[i], roots[i].dtype, sizeOf(roots[i].shape));
    const at = find(roots[i], raw, (v) => !Number.isFinite(v));
    if (at) throw await diagnose(backend, capture, run, roots[i], at);
  }
}

interface Found {
  readonly value: number;
  readonly position: number;
}

function find(node: Node, raw: TypedArray, test: (value: number) => boolean): Found | null {
  if (!isFloat(node.dtype)) return null;
  const values = decode(node.dtype, raw);
  const position = values.findIndex(test);
  return position < 0 ? null : { value: values[position], position };
}

function coordinates(position: number, node: Node): string {
  const at: number[] = [];
  for (let i = node.shape.length - 1; i >= 0; i--) {
    at.unshift(position % node.shape[i]);
    position = Math.floor(position / node.shape[i]);
  }
  return showShape(at);
}

const describe = (node: Node): string => `${node.operation.name} → ${node.dtype}${showShape(node.shape)}`;

async function diagnose(
  backend: Backend,
  capture: Capture,
  run: Run,
  result: Node,
  found: Found,
): Promise<AnomalyError> {
  const computed = capture.order.filter((node) => !isLeaf(node) && node.state === null);
  const outputs = computed.map((node) => backend.allocate(bytesOf(node)));
  const program = await backend.compile({ ...capture, roots: computed, assigns: [] });
  await program.run({ ...run, outputs });
  const raws = new Map<Node, TypedArray>();
  const fetch = async (node: Node, memory: unknown, length: number): Promise<void> => {
    raws.set(node, await backend.read(memory, node.dtype, length));
  };
  for (let i = 0; i < computed.length; i++) await fetch(computed[i], outputs[i], sizeOf(computed[i].shape));
  for (const node of capture.order)
    if (node.storage) await fetch(node, run.buffers[capture.storages.indexOf(node.storage)], node.storage.length);
  program.dispose?.();

  // A NaN is traced to where it arose, past infinities that are meant (a mask); an infinity likewise.
  const bad = Number.isNaN(found.value) ? Number.isNaN : (v: number) => v === Infinity || v === -Infinity;
  const has = (node: Node): Found | null => {
    const raw = raws.get(node.state && !node.storage ? node.inputs[1] : node);
    return raw ? find(node, raw, bad) : null;
  };
  const what = `${found.value} at ${coordinates(found.position, result)} of ${describe(result)}`;
  for (const node of capture.order) {
    const first = has(node);
    if (!first) continue;
    if (isLeaf(node)) {
      const name = node.storage?.name ? ` "${node.storage.name}"` : "";
      return new AnomalyError(
        `${what}: it was already in a value that this step reads${name} (${node.dtype}${showShape(node.shape)}, ` +
          `${first.value} at ${coordinates(first.position, node)}). Nothing was written`,
      );
    }
    if (node.inputs.some((input) => has(input))) continue;
    const inputs = node.inputs.map(
      (input) => `${input.dtype}${showShape(input.shape)}${range(input, raws.get(input))}`,
    );
    return new AnomalyError(
      `${what}: the first operation to give it is ${describe(node)}, at ${coordinates(first.position, node)}, ` +
        `from ${inputs.join(" and ") || "no inputs"}. Nothing was written`,
    );
  }
  return new AnomalyError(
    `${what}; computed one operation at a time it does not arise (it depends on the rounding of ${backend.name}). Nothing was written`,
  );
}

function range(node: Node, raw: TypedArray | undefined): string {
  if (!raw || raw.length === 0) return "";
  let low = Infinity;
  let high = -Infinity;
  for (const v of decode(node.dtype, raw)) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  return ` in ${low} … ${high}`;
}
