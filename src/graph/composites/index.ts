/**
 * The table of composites, gathered: importing this file registers every row. A new composite is a new row in one of
 * the files below (or a new file here), and a rule in `autograd/rules/`.
 */
export { gelu, relu, sigmoid, silu } from "./activation.ts";
export { type AttentionAttrs, type AttentionOptions, attention, attentionBackward } from "./attention.ts";
export { type BlockLinearAttrs, blockLinear, blockSize, dequantizeBlocks } from "./block-linear.ts";
export { type ConvAttrs, conv, convInputGradient, convWeightGradient } from "./conv.ts";
export { type DequantizeAttrs, dequantize, nf4Block, type QuantizedFormat } from "./dequantize.ts";
export { type LinearCrossEntropyAttrs, linearCrossEntropy, linearCrossEntropyBackward } from "./linearCrossEntropy.ts";
export {
  type BceAttrs,
  binaryCrossEntropyWithLogits,
  type CrossEntropyAttrs,
  crossEntropy,
  crossEntropyGradient,
  mseLoss,
  type NllAttrs,
  nllLoss,
  type Reduction,
} from "./loss.ts";
export { type BatchNormAttrs, batchNorm, batchNormEval, layerNorm, type NormAttrs, rmsNorm } from "./norm.ts";
export { type AvgPoolAttrs, avgPool2d, maxPool2d, maxPool2dGradient, type PoolAttrs } from "./pool.ts";
export { type CellName, carriesOf, gatesOf, type RecurrentAttrs, recurrent, recurrentBackward } from "./recurrent.ts";
export { logSoftmax, softmax } from "./softmax.ts";
export { type StoredFormat, storedFormats } from "./stored-blocks.ts";
export { dequantizeStored, type StoredLinearAttrs, storedLinear, storedWidth } from "./stored-linear.ts";
