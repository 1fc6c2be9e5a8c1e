/**
 * Pictures as arrays: JPEG and PNG, decoded to the same bytes in Node and in browsers (there in a worker), and a folder of them
 * with a subfolder a class as a data set (torchvision's ImageFolder).
 */
import { type Batch, type Dataset, type HostArray, LoaderError, type WorkerSource } from "./dataset.ts";
import { decodePicture } from "./decode-picture.ts";
import { isFolder, listFolder } from "./files.ts";
import { join } from "./path.ts";
import type { ImageMode } from "./picture-formats.ts";
import { type ReadOptions, readBytes, type Source, sourceName } from "./source.ts";

export { ImageError } from "./errors.ts";
export type { ImageMode } from "./picture-formats.ts";

export interface ImageOptions {
  /** Default: "rgb". A picture of another kind is converted; transparency is left out. */
  readonly mode?: ImageMode;
}

/**
 * Reads a JPEG or PNG as uint8 [channels, height, width] (torchvision.io.decode_image). Chroma that a JPEG
 * stores at half the size is repeated, not interpolated, and rotations that EXIF asks for are not made; 16 bits a channel
 * become 8. Throws ImageError, FileError, or the signal's reason.
 */
export async function decodeImage(source: Source, options: ImageOptions & ReadOptions = {}): Promise<HostArray> {
  const { mode = "rgb", ...reading } = options;
  return decodePicture(await readBytes(source, reading), mode, sourceName(source));
}

/** A picture of a folder, and the number of its class. */
export interface ImageSample {
  readonly path: string;
  readonly label: number;
}

interface ImageFolderParts {
  readonly classes: readonly string[];
  readonly samples: readonly ImageSample[];
  readonly mode: ImageMode;
}

/** The name by which workers find `openImages`. */
const openerName = "openImages";

/**
 * Pictures with labels: a sample is [uint8 [channels, height, width], int32 [] label]. For batches all must be of one size, or the
 * loader needs a `collate`. It can be read by the loader's workers.
 */
export class ImageFolder implements Dataset<Batch> {
  /** Sorted names of the subfolders. A label is a position here. */
  readonly classes: readonly string[];
  readonly samples: readonly ImageSample[];
  readonly mode: ImageMode;
  constructor({ classes, samples, mode }: ImageFolderParts) {
    this.classes = classes;
    this.samples = samples;
    this.mode = mode;
  }
  get length(): number {
    return this.samples.length;
  }
  async get(index: number): Promise<Batch> {
    const { path, label } = this.samples[index];
    const image = await decodeImage(path, { mode: this.mode });
    return [image, { dtype: "int32", shape: [], data: Int32Array.of(label) }];
  }
  worker(): WorkerSource {
    const { classes, samples, mode } = this;
    return { module: import.meta.url, name: openerName, data: { classes, samples, mode } };
  }
}

/** What a worker calls to open an ImageFolder (see `worker`). */
export function openImages(parts: ImageFolderParts): ImageFolder {
  return new ImageFolder(parts);
}

/**
 * Opens a folder in which each subfolder is a class and holds its pictures (.jpg, .jpeg, .png, at any case), in sorted order. Nothing is
 * decoded yet. Throws FileError, and LoaderError where a class has no pictures or there is none.
 */
export async function imageFolder(path: string, { mode = "rgb" }: ImageOptions = {}): Promise<ImageFolder> {
  const classes: string[] = [];
  const samples: ImageSample[] = [];
  for (const name of await listFolder(path)) {
    const folder = join(path, name);
    if (name.startsWith(".") || !(await isFolder(folder))) continue;
    const files = (await listFolder(folder)).filter((file) => /\.(jpe?g|png)$/i.test(file));
    if (files.length === 0) throw new LoaderError(`${folder}: there is no .jpg or .png picture in this class's folder`);
    for (const file of files) samples.push({ path: join(folder, file), label: classes.length });
    classes.push(name);
  }
  if (classes.length === 0)
    throw new LoaderError(`${path}: expected a subfolder for each class, with pictures in it; there is none`);
  return new ImageFolder({ classes, samples, mode });
}
