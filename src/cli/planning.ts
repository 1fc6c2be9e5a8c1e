/**
 * A device on which nothing is computed: programs are compiled by a real backend and kept, their runs are left out. So a training
 * step can be looked at (its graph, kernels, memory) without having the memory or the time for it.
 */
import type { Backend, Capture, Program } from "../backends/backend.ts";
import { allocateRaw, dtypes, type TypedArray } from "../core/dtype.ts";
import { sizeOf } from "../core/shape.ts";
import { backendOf, registerBackend, setDevice } from "../execution/index.ts";
import type { Node } from "../graph/node.ts";

export interface PlannedNode {
  readonly name: string;
  readonly label: string;
  readonly kind: "input" | "state" | "constant" | "composite" | "primitive";
  /** Indices of other planned nodes. */
  readonly inputs: readonly number[];
  /** Whether its value is handed back or written to a state. */
  readonly isRoot: boolean;
}

export interface PlannedProgram {
  readonly program: Program;
  /** What was captured, as plain data: the graph itself must not be kept. */
  readonly nodes: readonly PlannedNode[];
  /** Bytes of states that it reads or writes, of other values that it reads, and of what it hands back. */
  readonly stateBytes: number;
  readonly inputBytes: number;
  readonly outputBytes: number;
  readonly writesState: boolean;
}

/** The name of the planning device; one a process. */
export const planningDevice = "plan";

/**
 * Opens a planning device over the backend of `base` and makes it the default. Its programs collect in the list that is given back, each when it
 * is compiled; `ran` is told of each that would be run, as often as it would be.
 */
export async function openPlanning(
  base: string,
  ran: (program: PlannedProgram) => void = () => {},
): Promise<PlannedProgram[]> {
  const real = await backendOf(base);
  const programs: PlannedProgram[] = [];
  const backend: Backend = {
    name: planningDevice,
    dtypes: real.dtypes,
    allocate: (): Given => ({ data: null }),
    write(memory, data) {
      (memory as Given).data = data.slice();
    },
    read: (memory, dtype, length) => (memory as Given).data?.slice() ?? allocateRaw(dtype, length),
    async compile(capture) {
      const plan = describe(capture);
      const program = await real.compile(capture);
      const planned = { ...plan, program };
      programs.push(planned);
      return { stats: program.stats, describe: (stage) => program.describe(stage), run: () => ran(planned) };
    },
  };
  registerBackend(planningDevice, () => backend);
  setDevice(planningDevice);
  return programs;
}

/** Memory of the planning device: what was given to it, which is read back; the rest reads as zeros. */
interface Given {
  data: TypedArray | null;
}

const bytesOf = (node: Node): number => sizeOf(node.shape) * dtypes[node.dtype].bytes;

function describe(capture: Capture): Omit<PlannedProgram, "program"> {
  const index = new Map<Node, number>();
  const roots = new Set<Node>([...capture.roots, ...capture.assigns.map(({ value }) => value)]);
  const nodes = capture.order.map((node, i): PlannedNode => {
    index.set(node, i);
    const { operation, storage } = node;
    const kind =
      storage !== null
        ? storage.mutable
          ? "state"
          : "input"
        : operation.group === "leaf"
          ? "constant"
          : operation.group === "composite"
            ? "composite"
            : "primitive";
    const name = storage !== null ? storage.name || kind : operation.name;
    return {
      name,
      label: `${node.dtype} [${node.shape.join(", ")}]`,
      kind,
      inputs: storage !== null ? [] : node.inputs.flatMap((input) => index.get(input) ?? []),
      isRoot: roots.has(node),
    };
  });
  let stateBytes = 0;
  let inputBytes = 0;
  for (const storage of capture.storages) {
    if (storage.mutable) stateBytes += storage.bytes;
    else inputBytes += storage.bytes;
  }
  return {
    nodes,
    stateBytes,
    inputBytes,
    outputBytes: capture.roots.reduce((n, root) => n + bytesOf(root), 0),
    writesState: capture.assigns.length > 0,
  };
}
