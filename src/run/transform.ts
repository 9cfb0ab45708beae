/** @file Transforms of a model's weights: a model value in, another out; edits as weights where that is exact; what was done as a record. */
import { EditError, ModelError, UsageError } from '../base/errors.ts'
import { sha256 } from '../base/hash.ts'
import { WeightStore } from '../models/formats/index.ts'
import { inverse, type SiteMap, type Transform, transformCheckpoint, transformOf } from '../models/transforms/index.ts'
import type { DataEdit, Edit } from '../sites/edits.ts'
import { layerAllowed } from '../sites/where.ts'
import { assemble } from './load.ts'
import type { Model } from './model.ts'

/** What a record says of a transform: lists of numbers in full up to this length, longer ones by their hash. */
const longestList = 4096

/** A value of a transform as JSON. */
async function plain(value: unknown, longest: number): Promise<unknown> {
  if (ArrayBuffer.isView(value)) {
    const { length, buffer, byteOffset, byteLength } = value as Float32Array
    if (length <= longest) return Array.from(value as Float32Array)
    return { length, sha256: await sha256(new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength)) }
  }
  if (value instanceof Map) return plain(Object.fromEntries(value), longest)
  if (Array.isArray(value)) return Promise.all(value.map((v) => plain(v, longest)))
  if (typeof value !== 'object' || value === null) return value
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))
  return Object.fromEntries(await Promise.all(entries.map(async ([k, v]) => [k, await plain(v, longest)] as const)))
}

/** A transform as plain data for records: kind and parameters, long lists by their hash. */
export type TransformRecord = { readonly kind: string; readonly params: unknown; readonly inverse?: true }

/** The transforms of a model as plain data, first to last. */
export async function transformRecords(transforms: readonly Transform[]): Promise<TransformRecord[]> {
  return Promise.all(
    transforms.map(async (t) => ({
      kind: t.kind,
      params: await plain(t.params, longestList),
      ...(t.inverse ? { inverse: true as const } : {}),
    })),
  )
}

/** What tells a list of transforms from others. */
async function recipeOf(transforms: readonly Transform[]): Promise<string> {
  const data = transforms.map(({ kind, params, record, inverse: undone }) => ({ kind, params, ...(undone ? { undone, record } : {}) }))
  return sha256(JSON.stringify(await plain(data, 0)))
}

/** The same tensors, none of which is mapped where it lies: the runtime takes the weights of a program from files or from memory, and what is made has no file. */
function unmapped(store: WeightStore): WeightStore {
  const tensors = [...store.tensors.values()].map((t) => {
    const { path: _, ...source } = t.source
    return {
      ...t,
      source: { ...source, read: (offset: number, length: number) => t.source.read(offset, length), close: () => t.source.close() },
    }
  })
  return new WeightStore({ format: store.format, name: store.name, metadata: store.metadata, sources: [], tensors })
}

const named = (t: Transform) => (t.inverse ? `undo ${t.kind}` : t.kind)

/**
 * A model with other weights: transforms are applied first to last, each to what the one before it gave. The model itself stays as it is, and its edits are
 * in force on the new one too. What was applied is in `origin.transforms`, and in the id and the hash of all that is saved.
 * @throws ModelError where the family cannot have a transform, UsageError for malformed ones.
 */
export async function transform(model: Model, transforms: readonly Transform[]): Promise<Model> {
  if (transforms.length === 0) throw new UsageError('There is no transform to apply; give at least one.')
  const { opened, options } = model.internals.source
  const earlier = model.origin.transforms
  const recipe = (applied: readonly Transform[]) => recipeOf([...earlier, ...applied])
  const { checkpoint, applied } = await transformCheckpoint(
    { config: opened.config, store: opened.store, family: options.family },
    transforms,
    recipe,
  )
  const all = [...earlier, ...applied]
  const [whole, base] = [await recipeOf(all), opened.baseHash ?? opened.hash]
  const changed = await assemble(
    {
      ...opened,
      id: `${opened.id.replace(/ \[.*\]$/, '')} [${all.map(named).join(', ')}]`,
      hash: async () => sha256(`${await base()} ${whole}`),
      baseHash: base,
      config: checkpoint.config,
      store: options.convert ? checkpoint.store : unmapped(checkpoint.store),
      transforms: all,
    },
    options,
  )
  return model.edits.length > 0 ? changed.with(model.edits) : changed
}

/** The model before its last transform, by the inverse of that. */
export async function undo(model: Model): Promise<Model> {
  const last = model.origin.transforms.at(-1)
  if (!last) throw new UsageError('The weights of this model were not transformed, so there is nothing to undo.')
  return transform(model, [inverse(last)])
}

/** The numbers of a parameter that is one number, or one for each coordinate. */
function numbersOf(value: unknown, width: number, of: string): Float32Array {
  const list = typeof value === 'number' ? new Array<number>(width).fill(value) : toList(value)
  if (list.length !== width) throw new EditError(`${of} has ${list.length} numbers, but the site is ${width} wide.`)
  return Float32Array.from(list)
}

function toList(value: unknown): number[] {
  if (ArrayBuffer.isView(value)) return Array.from(value as Float32Array)
  if (Array.isArray(value)) return (value as unknown[]).flat(8) as number[]
  const { data } = value as { data: Float32Array }
  return Array.from(data)
}

/** Edits that are affine maps, by op: their scale and shift. */
const affineOps: Readonly<Record<string, (p: Readonly<Record<string, unknown>>, width: number) => Omit<SiteMap, 'site'>>> = {
  add: (p, width) => {
    const factor = (p.scale as number | undefined) ?? 1
    return { shift: numbersOf(p.vector, width, 'The vector').map((v) => v * factor) }
  },
  scale: (p, width) => ({ scale: numbersOf(p.factor, width, 'The factor') }),
  zero: (_, width) => ({ scale: new Float32Array(width) }),
  affine: (p, width) => ({
    ...(p.scale === undefined ? {} : { scale: numbersOf(p.scale, width, 'The scale') }),
    ...(p.shift === undefined ? {} : { shift: numbersOf(p.shift, width, 'The shift') }),
  }),
}

/**
 * The transform that does what edits do: vectors that are added and affine maps move into the weights around their sites, at no cost when the model runs.
 * @throws EditError for edits that act on some tokens only, or are no affine maps.
 */
export function foldEdits(model: Model, edits: readonly Edit[]): Transform {
  const maps = edits.flatMap((e): SiteMap[] => {
    const op = affineOps[e.op]
    if (!op)
      throw new EditError(
        `The edit '${e.op}' is no affine map of a site, so it cannot be folded into weights; those that can are ${Object.keys(affineOps).join(', ')}.`,
      )
    const { layers: _, ...elsewhere } = e.where ?? {}
    if (Object.keys(elsewhere).length > 0)
      throw new EditError(
        `The edit '${e.op}' at '${e.site}' acts only where ${Object.keys(elsewhere).join(', ')} say; weights act on every token. Keep it as an edit.`,
      )
    return model
      .resolve(e.site)
      .filter((info) => layerAllowed(e.where ?? {}, info.layer, info.stack.layers))
      .map((info) => {
        const width = model
          .shapeOf(info)
          .slice(2)
          .reduce<number>((p, n) => p * (typeof n === 'number' ? n : Number.NaN), 1)
        if (!Number.isInteger(width))
          throw new EditError(`'${info.site}' has no coordinates of its own that weights could move; keep the edit.`)
        return { site: info.site, ...op((e as DataEdit).params ?? {}, width) }
      })
  })
  if (maps.length === 0) throw new ModelError('There is no edit to fold into the weights.')
  return transformOf('fold_affine', { maps })
}
