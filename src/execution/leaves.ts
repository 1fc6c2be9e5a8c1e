/**
 * Leaves from the host's data: a storage on a device, filled at once where the device is open, else on the way there
 * until the first flush; nothing here waits.
 */
import { type DType, dtypes, type TypedArray } from "../core/dtype.ts";
import { type Shape, sizeOf } from "../core/shape.ts";
import { type Node, Storage } from "../graph/node.ts";
import { leaf } from "../graph/ops.ts";
import { openedBackend } from "./device.ts";
import { read } from "./flush.ts";

/**
 * A leaf that holds `raw` (16-bit floats as bits), row-major. `owned` says that nobody else will write to the array;
 * otherwise it is copied.
 */
export function leafFrom(device: string, dtype: DType, shape: Shape, raw: TypedArray, owned: boolean): Node {
  const storage = new Storage(device, dtype, sizeOf(shape), null);
  const backend = openedBackend(device);
  if (backend) {
    storage.memory = (owned && backend.adopt?.(raw)) || null;
    if (storage.memory === null) {
      storage.memory = backend.allocate(storage.length * dtypes[dtype].bytes);
      backend.write(storage.memory, raw);
    }
  } else storage.upload = owned ? raw : raw.slice();
  return leaf(storage, shape);
}

/** A leaf on `device` that holds what `node` is now; the copy is under way when this returns. */
export function transfer(node: Node, device: string): Node {
  const storage = new Storage(device, node.dtype, sizeOf(node.shape), null);
  const raw = read(node);
  storage.upload = raw;
  if (raw instanceof Promise) raw.catch(() => {}); // whoever needs the value sees the error
  return leaf(storage, node.shape);
}
