/**
 * The small residual networks for pictures of 32 × 32 (He et al. 2015, section 4.2): 6n + 2 layers, shortcuts without parameters
 * (their option A). Names are those of akamaster/pytorch_resnet_cifar10, whose checkpoints (resnet20 … resnet110) it reads.
 */
import { ShapeError } from "../core/errors.ts";
import { showShape } from "../core/shape.ts";
import { type FormatSource, loadTorch } from "../formats/index.ts";
import { BatchNorm2d, Conv2d, type FactoryOptions, Linear, Module, Sequential, type StateDict } from "../nn/index.ts";
import { kaimingNormal_ } from "../nn/init.ts";
import { pad, type Tensor, tensor } from "../tensor/index.ts";
import { PretrainedError } from "./config.ts";

export interface CifarResNetConfig {
  /** Blocks of each of the three stages: 3 makes ResNet-20. */
  readonly blocks: number;
  /** Default: 10. */
  readonly numClasses?: number;
}

/** Of RGB between 0 and 1: ImageNet's, with which the published checkpoints were trained. */
const mean = [0.485, 0.456, 0.406];
const std = [0.229, 0.224, 0.225];

/** 3 × 3, without bias; the weights start as He et al. give them (ICCV 2015). */
function convolution(from: number, to: number, stride: number, where: FactoryOptions): Conv2d {
  const layer = new Conv2d(from, to, 3, { stride, padding: 1, bias: false, ...where });
  kaimingNormal_(layer.weight);
  return layer;
}

/** relu(two convolutions (x) + shortcut(x)), [batch, from, height, width] → [batch, to, height / stride, width / stride]. */
class BasicBlock extends Module {
  readonly stride: number;
  readonly added: number;
  conv1: Conv2d;
  bn1: BatchNorm2d;
  conv2: Conv2d;
  bn2: BatchNorm2d;
  constructor(from: number, to: number, stride: number, where: FactoryOptions) {
    super();
    this.stride = stride;
    this.added = to - from;
    this.conv1 = convolution(from, to, stride, where);
    this.bn1 = new BatchNorm2d(to, where);
    this.conv2 = convolution(to, to, 1, where);
    this.bn2 = new BatchNorm2d(to, where);
  }
  /** Option A: every other pixel, and channels of zeros on both sides. */
  shortcut(x: Tensor): Tensor {
    if (this.stride === 1 && this.added === 0) return x;
    const [batch, channels, height, width] = x.shape;
    const halved = pad(x, [0, width % 2, 0, height % 2])
      .reshape(batch, channels, Math.ceil(height / 2), 2, Math.ceil(width / 2), 2)
      .select(5, 0)
      .select(3, 0);
    const before = Math.floor(this.added / 2);
    return pad(halved, [0, 0, 0, 0, before, this.added - before]);
  }
  forward(x: Tensor): Tensor {
    const y = this.bn1.forward(this.conv1.forward(x)).relu();
    return this.bn2.forward(this.conv2.forward(y)).add(this.shortcut(x)).relu();
  }
}

const stage = (blocks: number, from: number, to: number, where: FactoryOptions): Sequential =>
  new Sequential(
    ...Array.from({ length: blocks }, (_, i) =>
      i === 0 ? new BasicBlock(from, to, from === to ? 1 : 2, where) : new BasicBlock(to, to, 1, where),
    ),
  );

/** Pictures [batch, 3, height, width], normalised (see `preprocess`) → logits [batch, numClasses]. */
export class CifarResNet extends Module {
  conv1: Conv2d;
  bn1: BatchNorm2d;
  layer1: Sequential;
  layer2: Sequential;
  layer3: Sequential;
  linear: Linear;
  constructor({ blocks, numClasses = 10 }: CifarResNetConfig, where: FactoryOptions = {}) {
    super();
    this.conv1 = convolution(3, 16, 1, where);
    this.bn1 = new BatchNorm2d(16, where);
    this.layer1 = stage(blocks, 16, 16, where);
    this.layer2 = stage(blocks, 16, 32, where);
    this.layer3 = stage(blocks, 32, 64, where);
    this.linear = new Linear(64, numClasses, where);
  }
  /** Bytes [batch, 3, height, width], red, green, blue from 0 to 255 → what the published networks were trained on. */
  preprocess(pixels: Tensor): Tensor {
    const channel = (values: readonly number[]): Tensor =>
      tensor([...values], { device: pixels.device }).reshape(3, 1, 1);
    return pixels.to("float32").div(255).sub(channel(mean)).div(channel(std));
  }
  /** The mean of the last features over the picture, [batch, 64]. */
  features(x: Tensor): Tensor {
    if (x.ndim !== 4 || x.shape[1] !== 3)
      throw new ShapeError(`CifarResNet: pictures must be [batch, 3, height, width], got ${showShape(x.shape)}`);
    let y = this.bn1.forward(this.conv1.forward(x)).relu();
    for (const layer of [this.layer1, this.layer2, this.layer3]) y = layer.forward(y);
    return y.mean([2, 3]);
  }
  forward(x: Tensor): Tensor {
    return this.linear.forward(this.features(x));
  }
}

export interface LoadCifarResNetOptions {
  readonly device?: string;
  /** Classes of a new, untrained last layer; without it the checkpoint's own. */
  readonly numClasses?: number;
}

/**
 * Loads a checkpoint (`.th`, `.pth`), in evaluation mode; its depth follows from its keys. Throws FileError, FormatError, and
 * NablaError where its tensors are not those of such a network.
 */
export async function loadCifarResNet(
  source: FormatSource,
  options: LoadCifarResNetOptions = {},
): Promise<CifarResNet> {
  const { numClasses, ...where } = options;
  const stored: StateDict = {};
  // what torch.nn.DataParallel and the training script put before the names
  for (const [key, x] of Object.entries(await loadTorch(source, where)))
    stored[key.replace(/^state_dict\./, "").replace(/^module\./, "")] = x;
  const blocks = Object.keys(stored).filter((key) => /^layer1\.\d+\.conv1\.weight$/.test(key)).length;
  const head = stored["linear.weight"];
  if (blocks === 0 || head === undefined)
    throw new PretrainedError("loadCifarResNet: there is no layer1.0.conv1.weight or no linear.weight in this file");
  const model = new CifarResNet({ blocks, numClasses: numClasses ?? head.shape[0] }, where);
  if (numClasses !== undefined) for (const key of ["linear.weight", "linear.bias"]) delete stored[key];
  const own = model.stateDict();
  // files of PyTorch before 0.4.1 do not count the batches
  const isOptional = (key: string): boolean =>
    key.endsWith(".num_batches_tracked") || (numClasses !== undefined && key.startsWith("linear."));
  for (const key of Object.keys(own)) if (!(key in stored) && isOptional(key)) stored[key] = own[key];
  model.loadStateDict(stored);
  return model.eval();
}
