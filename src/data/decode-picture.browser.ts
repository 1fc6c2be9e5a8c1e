/** Decoding a picture in the worker that decodes for a page, and only there: the libraries are no part of what a page loads. */
import type { HostArray } from "./dataset.ts";
import { inWorker } from "./elsewhere.browser.ts";
import type { ImageMode } from "./picture-formats.ts";

export const decodePicture = (bytes: Uint8Array, mode: ImageMode, name: string): Promise<HostArray> =>
  inWorker("decodePicture", [bytes, mode, name], {});
