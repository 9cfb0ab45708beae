/** @file EasySteer's SteeringSpec as JSON: directions by layer, in base64, with a hash over their content. */
import { FormatError, UsageError } from '../base/errors.ts'
import { writeFileWhole } from '../base/files.ts'
import { sha256 } from '../base/hash.ts'
import { type SteeringVector, vectorOfFile } from './vector.ts'

/** Options of writing for EasySteer. */
export interface EasySteerWriteOptions {
  /** Factor that EasySteer applies (default 1). */
  readonly scale?: number
}

interface Payload {
  readonly version: number
  readonly kind: string
  readonly tensors: Readonly<Record<string, { readonly shape: readonly number[]; readonly data: string }>>
  readonly extra: Readonly<Record<string, unknown>>
  readonly sha256: string
}

interface VectorSpec {
  readonly data?: Payload
  readonly source?: string
  readonly algorithm?: string
  readonly scale?: number
  readonly layers?: readonly number[] | null
  readonly normalize?: boolean
  readonly apply?: unknown
}

const payloadVersion = 1

/** Whether a JSON value is a SteeringSpec, or a payload of its `data`. */
export function isEasySteer(value: unknown): boolean {
  return typeof value === 'object' && value !== null && ('vectors' in value || ('kind' in value && 'tensors' in value))
}

/** Writes a SteeringSpec of one vector that is added everywhere. */
export async function writeEasySteer(path: string, vector: SteeringVector, options: EasySteerWriteOptions): Promise<void> {
  await writeFileWhole(path, `${JSON.stringify(await encodeEasySteer(vector, options))}\n`)
}

/** A SteeringSpec of one vector; layers are outputs of blocks. */
export async function encodeEasySteer(vector: SteeringVector, { scale = 1 }: EasySteerWriteOptions = {}): Promise<Record<string, unknown>> {
  const layers = vector.sites.map((site) => {
    const layer = /^resid_post\.(\d+)$/.exec(site)?.[1]
    if (layer === undefined)
      throw new UsageError(
        `EasySteer adds vectors to outputs of blocks only (resid_post.N), not to '${site}'; leave it out, or save as safetensors.`,
      )
    return Number(layer)
  })
  const tensors = Object.fromEntries(
    vector.sites.map((site, i) => [
      `layer.${layers[i]}`,
      { shape: [vector.at(site).length], data: bytesOf(vector.at(site)).toString('base64') },
    ]),
  )
  const payload = { version: payloadVersion, kind: 'direction', tensors, extra: {} }
  const apply = { prompt: 'all', generation: 'all' }
  const data: Payload = { ...payload, sha256: await digest(payload) }
  return {
    vectors: [{ data, algorithm: 'direct', scale, layers: [...layers].sort((a, b) => a - b), normalize: false, apply, params: {} }],
    conflict: 'priority',
  }
}

/**
 * A vector from a SteeringSpec or a payload; scales are multiplied in, and where it applies is noted in the record, not kept.
 * @throws FormatError for algorithms that do more than add, for vectors in other files, and for content that its hash denies.
 */
export async function decodeEasySteer(value: unknown, path: string): Promise<SteeringVector> {
  const spec = value as { vectors?: readonly VectorSpec[]; conflict?: string }
  const items: readonly VectorSpec[] = spec.vectors ?? [{ data: value as Payload }]
  const directions = new Map<string, Float32Array>()
  const places: string[] = []
  for (const { data, source, algorithm = 'direct', scale = 1, layers, normalize, apply } of items) {
    if (source) throw new FormatError(`${path} names the file ${source} for its vector; load that file.`)
    if (algorithm !== 'direct' || normalize)
      throw new FormatError(
        `${path} uses the algorithm '${algorithm}'${normalize ? ' with normalize' : ''}, which is no plain addition of a vector.`,
      )
    if (apply !== undefined) places.push(JSON.stringify(apply))
    for (const [layer, direction] of await decodePayload(data, path)) {
      if (layers && !layers.includes(layer)) continue
      const site = `resid_post.${layer}`
      const before = directions.get(site)
      if (before && spec.conflict !== 'sequential')
        throw new FormatError(
          `${path} has several vectors for layer ${layer} and does not add them up (conflict '${spec.conflict ?? 'priority'}'); split it.`,
        )
      directions.set(
        site,
        direction.map((x, i) => (before?.[i] ?? 0) + scale * x),
      )
    }
  }
  return vectorOfFile(path, directions, {
    method: 'unknown',
    model: { id: 'an unnamed model' },
    sites: [],
    source: { format: 'easysteer', ...(places.length > 0 ? { apply: places.join(' ') } : {}) },
  })
}

async function decodePayload(payload: Payload | undefined, path: string): Promise<[number, Float32Array][]> {
  if (typeof payload?.tensors !== 'object' || payload.tensors === null)
    throw new FormatError(`${path} has a vector without data; it may be truncated.`)
  if (payload.kind !== 'direction' || payload.version !== payloadVersion)
    throw new FormatError(
      `${path} holds a payload '${payload.kind}' of version ${payload.version}; only directions of version ${payloadVersion} are vectors.`,
    )
  if (payload.sha256 !== (await digest(payload)))
    throw new FormatError(`The vector in ${path} is not what its hash promises; fetch or write it again.`)
  return Object.entries(payload.tensors).map(([name, { shape, data }]) => {
    const layer = /^layer\.(\d+)$/.exec(name)?.[1]
    const bytes = Buffer.from(data, 'base64')
    if (layer === undefined || shape.length !== 1 || bytes.length !== 4 * (shape[0] as number))
      throw new FormatError(
        `'${name}' in ${path} has shape [${shape.join(', ')}] and ${bytes.length} bytes, which is no direction of a layer.`,
      )
    return [Number(layer), Float32Array.from({ length: shape[0] as number }, (_, i) => bytes.readFloatLE(4 * i))]
  })
}

/** EasySteer's identity of a payload: kind and version, then name, shape as Python writes a tuple, and bytes of each tensor by name. */
function digest({ kind, tensors }: Omit<Payload, 'sha256'>): Promise<string> {
  const pieces = Object.keys(tensors)
    .sort()
    .flatMap((name) => {
      const { shape, data } = tensors[name] as Payload['tensors'][string]
      return [Buffer.from(`${name}(${shape.join(', ')},)`), Buffer.from(data, 'base64')]
    })
  return sha256(new Uint8Array(Buffer.concat([Buffer.from(`${kind}:${payloadVersion}`), ...pieces])))
}

function bytesOf(data: Float32Array): Buffer {
  const bytes = Buffer.alloc(data.byteLength)
  for (const [i, x] of data.entries()) bytes.writeFloatLE(x, 4 * i)
  return bytes
}
