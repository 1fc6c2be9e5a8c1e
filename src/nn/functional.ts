/** The functional forms of the layers (torch.nn.functional), gathered from the files of functional/. */
export * from "./functional/activation.ts";
export * from "./functional/attention.ts";
export * from "./functional/conv.ts";
export { type DropoutOptions, dropout } from "./functional/dropout.ts";
export * from "./functional/linear.ts";
export * from "./functional/loss.ts";
export * from "./functional/norm.ts";
