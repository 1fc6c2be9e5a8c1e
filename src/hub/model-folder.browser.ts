/** A model's folder on a page, which has no cache of the hub: paths are those of the origin's private file system. */
import { entryAt } from "../data/files.browser.ts";
import { HubError } from "./errors.ts";
import type { HubOptions } from "./settings.ts";

export type { HubOptions } from "./settings.ts";

/** The path as it is given. Throws HubError for a name of the hub that is no path. */
export async function modelFolder(model: string, _options: HubOptions = {}): Promise<string> {
  if (!/^[\w.-]+\/[\w.-]+(@[\w./-]+)?$/.test(model)) return model;
  const there = await entryAt(model).then(
    () => true,
    () => false,
  );
  if (there) return model;
  throw new HubError(
    "BROWSER",
    `${model}: there is no such folder, and a page does not download from the hub; put the model's files into a folder of the origin's private file system, or load("https://huggingface.co/…/resolve/main/model.safetensors") and give the tensors to modelFrom`,
  );
}
