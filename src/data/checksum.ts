/** CRC-32. In the browser's build `checksum.browser.ts` is in the place of this file. */
import { crc32 as sum } from "node:zlib";

/** CRC-32 (ISO 3309) of bytes that follow those whose sum is `before`. */
export const crc32 = (bytes: Uint8Array, before = 0): number => sum(bytes, before);
