/** @file Transforms of weights: values that say what is done, one row for each kind, applied one after the other to a checkpoint. */
import { nearest, UsageError } from '../../base/errors.ts'
import { foldAffine } from './affine.ts'
import { centreUnembedding, centreWriting, orthogonalise } from './directions.ts'
import { type Checkpoint, Draft } from './draft.ts'
import type { Transform, TransformKind } from './kind.ts'
import { mergeLora } from './lora.ts'
import { foldNorms } from './norms.ts'
import { cast, quantise } from './numbers.ts'
import { ablateHeads, keepHeads, keepLayers } from './slices.ts'
import { foldValueBiases } from './value-biases.ts'

export type { SiteMap } from './affine.ts'
export type { Checkpoint } from './draft.ts'
export type { Transform, TransformKind } from './kind.ts'

/** All kinds of transforms. */
export const transformKinds = {
  fold_norms: foldNorms,
  fold_value_biases: foldValueBiases,
  fold_affine: foldAffine,
  centre_writing: centreWriting,
  centre_unembedding: centreUnembedding,
  orthogonalise,
  merge_lora: mergeLora,
  keep_layers: keepLayers,
  keep_heads: keepHeads,
  ablate_heads: ablateHeads,
  cast,
  quantise,
} as const

type Kinds = typeof transformKinds
type ParamsOf<K extends keyof Kinds> = Kinds[K] extends TransformKind<infer P> ? P : never

/** A transform of a kind: `transformOf('orthogonalise', { direction })`. */
export const transformOf = <K extends keyof Kinds>(kind: K, params: ParamsOf<K>): Transform =>
  checked({ kind, params: params as Readonly<Record<string, unknown>> })

/** Refuses kinds and params that are not known. */
function checked(t: Transform): Transform {
  const row = rowOf(t)
  const [needed, known] = [row.params, [...row.params, ...(row.optional ?? [])]]
  const unknown = Object.keys(t.params).find((p) => !known.includes(p))
  if (unknown !== undefined)
    throw new UsageError(`The transform '${t.kind}' has no parameter '${unknown}'; it has ${known.length > 0 ? known.join(', ') : 'none'}.`)
  const missing = needed.find((p) => t.params[p] === undefined)
  if (missing !== undefined) throw new UsageError(`The transform '${t.kind}' needs the parameter '${missing}'.`)
  return t
}

function rowOf({ kind }: Transform): TransformKind<Readonly<Record<string, unknown>>> {
  if (Object.hasOwn(transformKinds, kind))
    return transformKinds[kind as keyof Kinds] as unknown as TransformKind<Readonly<Record<string, unknown>>>
  const near = nearest(kind, Object.keys(transformKinds))
  throw new UsageError(
    `There is no transform '${kind}'${near ? `; did you mean '${near}'?` : ''} There are ${Object.keys(transformKinds).join(', ')}.`,
  )
}

/**
 * The transform that undoes one that was applied (a value of `model.origin.transforms`), to rounding.
 * @throws UsageError where it loses something, or was not applied yet.
 */
export function inverse(t: Transform): Transform {
  const row = rowOf(t)
  if (t.inverse) return { kind: t.kind, params: t.params }
  if (!row.undo)
    throw new UsageError(`The transform '${t.kind}' loses what it takes out, so it has no inverse; keep the model it was applied to.`)
  if (!t.record) throw new UsageError(`The transform '${t.kind}' was not applied yet; undo one of model.origin.transforms.`)
  return { ...t, inverse: true }
}

/**
 * Applies transforms one after the other; nothing is computed before the new weights are read.
 * @param recipe names what is made, for the cache of converted weights, given what was applied so far.
 * @returns the changed checkpoint, and the transforms with what their inverses need.
 */
export async function transformCheckpoint(
  checkpoint: Checkpoint,
  transforms: readonly Transform[],
  recipe: (applied: readonly Transform[]) => Promise<string>,
): Promise<{ checkpoint: Checkpoint; applied: readonly Transform[] }> {
  const applied: Transform[] = []
  let current = checkpoint
  for (const t of transforms) {
    const row = rowOf(checked(t))
    const draft = new Draft(current)
    if (t.inverse) {
      await row.undo?.(draft, t.params, t.record ?? {})
      applied.push(t)
    } else {
      const record = await row.apply(draft, t.params)
      applied.push({ kind: t.kind, params: t.params, record })
    }
    current = draft.finish(await recipe(applied))
  }
  return { checkpoint: current, applied }
}
