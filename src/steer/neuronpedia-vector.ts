/** @file Neuronpedia's vectors: the JSON of `POST /api/vector/new`, and what its Python client and its server return. */
import { FormatError, UsageError } from '../base/errors.ts'
import { writeFileWhole } from '../base/files.ts'
import { vocabulary } from '../sites/index.ts'
import { type SteeringVector, vectorOfFile } from './vector.ts'

/** Options of writing for Neuronpedia. */
export interface NeuronpediaWriteOptions {
  /** Its name there (default: the method and the site). */
  readonly label?: string
  /** The model as Neuronpedia calls it, such as `gpt2-small` (default: the record's id). */
  readonly modelId?: string
  /** Default strength there (default 10). */
  readonly strength?: number
}

/** Each field under the names by which the request, the Python client and the answers know it. */
const fields = {
  vector: ['vector', 'values'],
  layer: ['layerNumber', 'layer_num', 'source', 'layer'],
  hook: ['hookType', 'hook_type', 'hookName', 'hook_name'],
  model: ['modelId', 'model_id'],
  label: ['vectorLabel', 'label'],
  strength: ['vectorDefaultSteerStrength', 'defaultSteerStrength', 'default_steer_strength'],
} as const

/** Whether a JSON value is a Neuronpedia vector, or a list of them. */
export function isNeuronpedia(value: unknown): boolean {
  const first: unknown = Array.isArray(value) ? value[0] : value
  return typeof first === 'object' && first !== null && fields.vector.some((f) => Array.isArray((first as Record<string, unknown>)[f]))
}

/** A vector from Neuronpedia's JSON: one object, or a list of them for several sites of one model. */
export function decodeNeuronpedia(value: unknown, path: string): SteeringVector {
  const items = (Array.isArray(value) ? value : [value]) as readonly Record<string, unknown>[]
  const get = (item: Record<string, unknown>, field: keyof typeof fields) => {
    const key = fields[field].find((k) => item[k] !== undefined && item[k] !== null)
    return key === undefined ? undefined : item[key]
  }
  const models = new Set(items.map((item) => get(item, 'model')))
  if (models.size > 1) throw new FormatError(`${path} holds vectors of several models; split it, one file for each.`)
  const directions = new Map<string, number[]>()
  for (const item of items) {
    const site = siteOf(get(item, 'hook'), get(item, 'layer'), path)
    const vector = get(item, 'vector')
    if (!Array.isArray(vector) || !vector.every((x) => typeof x === 'number'))
      throw new FormatError(`The vector at '${site}' in ${path} is not a list of numbers.`)
    if (directions.has(site)) throw new FormatError(`${path} has two vectors at '${site}'; split it, one file for each.`)
    directions.set(site, vector as number[])
  }
  const [label, strength] = [get(items[0] as Record<string, unknown>, 'label'), get(items[0] as Record<string, unknown>, 'strength')]
  return vectorOfFile(path, directions, {
    method: 'unknown',
    model: { id: String([...models][0] ?? 'an unnamed model') },
    sites: [],
    source: {
      format: 'neuronpedia',
      ...(typeof label === 'string' ? { label } : {}),
      ...(typeof strength === 'number' ? { strength } : {}),
    },
  })
}

/** `hook_resid_pre` and a layer, or a whole `blocks.20.hook_resid_pre`, as a site; a layer may be the source `20-res-jb`. */
function siteOf(hook: unknown, layer: unknown, path: string): string {
  const [, inName, kind] = /^(?:blocks\.(\d+)\.)?(.+)$/.exec(String(hook ?? '')) ?? []
  const number = inName ?? /^(\d+)(?:-|$)/.exec(String(layer ?? ''))?.[1]
  const row = vocabulary.find((r) => r.per === 'layer' && r.transformerLens.includes(`blocks.{L}.${kind}`))
  if (!row || number === undefined)
    throw new FormatError(
      `${path} places its vector at hook '${String(hook)}' of layer '${String(layer)}', which is no site; give hook_type and layer_num.`,
    )
  return `${row.name}.${number}`
}

/** Writes the bodies of `POST /api/vector/new`: one object, or a list where the vector has several sites. */
export async function writeNeuronpedia(path: string, vector: SteeringVector, options: NeuronpediaWriteOptions): Promise<void> {
  const bodies = encodeNeuronpedia(vector, options)
  await writeFileWhole(path, `${JSON.stringify(bodies.length === 1 ? bodies[0] : bodies)}\n`)
}

/** The bodies of `POST /api/vector/new`, one for each site. */
export function encodeNeuronpedia(vector: SteeringVector, options: NeuronpediaWriteOptions = {}): Record<string, unknown>[] {
  const { strength = 10, modelId = vector.record.model.id, label } = options
  return [...vector.vectors].map(([site, data]) => ({
    modelId,
    layerNumber: inputLayer(site, vector.record.model.layers),
    hookType: 'hook_resid_pre',
    vector: Array.from(data),
    vectorDefaultSteerStrength: strength,
    vectorLabel: label ?? `${vector.record.method} at ${site}`,
  }))
}

/** Neuronpedia takes inputs of blocks only; what leaves block N is what enters block N + 1, if there is one. */
function inputLayer(site: string, layers: number | undefined): number {
  const [name, layer] = site.split('.') as [string, string | undefined]
  const input = name === 'resid_pre' ? Number(layer) : name === 'resid_post' ? Number(layer) + 1 : Number.NaN
  if (Number.isNaN(input) || (layers !== undefined && input >= layers))
    throw new UsageError(
      `Neuronpedia takes vectors at the input of a block (resid_pre.N), which '${site}' is not; leave it out, or save as safetensors.`,
    )
  return input
}
