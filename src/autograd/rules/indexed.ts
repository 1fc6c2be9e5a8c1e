/** Gradients of the rows whose positions depend on data: gather and scatter are each other's, with their ties. */
import { accumulator } from "../../core/dtype.ts";
import type { Node } from "../../graph/node.ts";
import {
  cast,
  div,
  dynamicSlice,
  dynamicUpdate,
  eq,
  full,
  gather,
  iota,
  scatter,
  where,
  zerosLike,
} from "../../graph/ops.ts";
import { needs, type Rule, setGradients, single } from "../table.ts";

/** Values and gradients by the way in which a scatter writes. */
const byMode: Readonly<Record<string, (y: Node, g: Node) => readonly [Node | null, Node | null]>> = {
  add: (y, g) => [g, needs(y, 2) ? gather(g, axisOf(y), y.inputs[1]) : null],
  set: (y, g) => {
    const [x, index, source] = y.inputs;
    const axis = axisOf(y);
    const dx = needs(y, 0) ? scatter(g, axis, index, zerosLike(source), "set") : null;
    if (!needs(y, 2)) return [dx, null];
    // of several sources for one place the last is there; only that one has a part in the result
    const order = iota(source.shape, axis);
    const writer = scatter(full(x.shape, -1, "int32"), axis, index, order, "set");
    return [dx, where(eq(gather(writer, axis, index), order), gather(g, axis, index), 0)];
  },
  max: (y, g) => {
    const [x, index, source] = y.inputs;
    const axis = axisOf(y);
    // what equals the maximum shares its gradient evenly (torch.scatter_reduce with amax)
    const wide = accumulator(x.dtype);
    const kept = eq(x, y);
    const written = eq(source, gather(y, axis, index));
    const count = scatter(cast(kept, wide), axis, index, cast(written, wide), "add");
    const share = cast(div(cast(g, wide), where(eq(count, 0), 1, count)), x.dtype);
    return [where(kept, share, 0), needs(y, 2) ? where(written, gather(share, axis, index), 0) : null];
  },
};

const axisOf = (y: Node): number => y.attrs["axis"] as number;

const scattered: Rule = single((y, g) => {
  const [dx, dsource] = byMode[y.attrs["mode"] as string](y, g);
  return [dx, null, dsource];
});

setGradients({
  gather: single((y, g) => {
    const [x, index] = y.inputs;
    return [scatter(full(x.shape, 0, x.dtype), axisOf(y), index, g, "add"), null];
  }),
  scatter: scattered,
  dynamicSlice: single((y, g) => {
    const [x, ...offsets] = y.inputs;
    return [dynamicUpdate(full(x.shape, 0, x.dtype), g, offsets), ...offsets.map(() => null)];
  }),
  dynamicUpdate: single((y, g) => {
    const [, update, ...offsets] = y.inputs;
    return [
      needs(y, 0) ? dynamicUpdate(g, zerosLike(update), offsets) : null,
      needs(y, 1) ? dynamicSlice(g, offsets, update.shape) : null,
      ...offsets.map(() => null),
    ];
  }),
  argsort: null,
});
