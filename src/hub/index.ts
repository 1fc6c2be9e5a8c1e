/** The hub of models, https://huggingface.co: models by their names there, through the cache that huggingface_hub uses. */
export { HubError, type HubErrorCode } from "./errors.ts";
export { type HubOptions, modelFolder } from "./model-folder.ts";
