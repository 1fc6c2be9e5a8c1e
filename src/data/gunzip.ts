/** Unpacking gzip. In the browser's build `gunzip.browser.ts` is in the place of this file. */
import { gunzipSync as unpack } from "node:zlib";

/** Unpacks at once; null where the host can't. Throws what the host throws at damaged data. */
export const gunzipSync: ((bytes: Uint8Array) => Uint8Array) | null = unpack;

/** Unpacks. Rejects at damaged data. */
export const gunzip = async (bytes: Uint8Array): Promise<Uint8Array> => unpack(bytes);
