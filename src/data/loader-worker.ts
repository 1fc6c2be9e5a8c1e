/**
 * What runs in a loader's worker thread: opens the data set, makes the batches it is asked for, and writes each into
 * its slot of the shared ring. Started by `worker-pool.ts`, never imported.
 */
import { parentPort, workerData } from "node:worker_threads";
import { type Batch, type Dataset, makeBatch, viewOf } from "./dataset.ts";
import type { BatchReply, BatchRequest, WorkerSetup } from "./worker-pool.ts";

const { source, ring, slotBytes } = workerData as WorkerSetup;
const port = parentPort!;

async function open(): Promise<{
  dataset: Dataset<unknown>;
  collate?: (samples: unknown[]) => Batch | Promise<Batch>;
}> {
  const exported = (await import(source.module))[source.name];
  if (typeof exported !== "function")
    throw new TypeError(
      `${source.module} has no exported function ${source.name}, which the data set's worker() names`,
    );
  const opened = await exported(source.data);
  return "dataset" in opened ? opened : { dataset: opened };
}

const opened = open();
opened.catch(() => {}); // reported with the first request

async function answer({ id, indices, slot }: BatchRequest): Promise<void> {
  let reply: BatchReply;
  try {
    const { dataset, collate } = await opened;
    const batch = await makeBatch(dataset, indices, collate);
    let at = 0;
    const places = batch.map(({ dtype, shape, data }) => {
      const place = { dtype, shape, byteOffset: slot * slotBytes + at, length: data.length };
      at += Math.ceil(data.byteLength / 64) * 64;
      return place;
    });
    if (at <= slotBytes) {
      batch.forEach(({ dtype, data }, k) => {
        viewOf(dtype, ring, places[k].byteOffset, data.length).set(data);
      });
      reply = { id, slot, places };
    } else reply = { id, slot, batch }; // larger than its slot: it travels by message
  } catch (error) {
    const e = error as Error;
    reply = { id, slot, error: { name: e?.name ?? "Error", message: e?.message ?? String(error), stack: e?.stack } };
  }
  port.postMessage(reply);
}

port.on("message", (request: BatchRequest) => void answer(request));
