/** Decoding a picture. In the browser's build `decode-picture.browser.ts` is in the place of this file. */
export { decodePicture } from "./picture-formats.ts";
