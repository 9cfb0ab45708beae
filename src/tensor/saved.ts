/** @file What waits between the forward and the backward pass: kept, computed again, or put on disk, within a number of bytes. */
import { UsageError } from '../base/errors.ts'
import { bytesOf, sizeOf } from '../base/types.ts'
import { type Differentiated, type DifferentiateOptions, differentiate } from './grad.ts'
import { topological } from './graph.ts'
import { evaluateDim } from './shape.ts'
import type { Tensor } from './tensor.ts'

/**
 * What becomes of forward values that the backward pass reads: they are kept in memory; computed again from what entered their segment (checkpointing;
 * Chen et al. 2016, “Training deep nets with sublinear memory cost”); written to disk; or as many kept as a budget of bytes allows, the others computed
 * again, and what even so goes beyond it written to disk.
 */
export type SavedPolicy = 'keep' | 'recompute' | 'disk' | { readonly budget: number }

/** Refuses what is no policy. */
export function checkPolicy(policy: unknown): void {
  if (policy === undefined || policy === 'keep' || policy === 'recompute' || policy === 'disk') return
  const budget =
    typeof policy === 'object' && policy !== null && Object.keys(policy).join() === 'budget'
      ? (policy as { budget: unknown }).budget
      : undefined
  if (typeof budget !== 'number' || !(budget > 0))
    throw new UsageError(
      `What becomes of saved values must be 'keep', 'recompute', 'disk' or { budget } with a positive number of bytes, not ${JSON.stringify(policy)}.`,
    )
}

/** Bytes between segments that may stay in memory under a policy; undefined where there is no limit. */
export function keptLimit(policy: SavedPolicy | undefined): number | undefined {
  if (policy === 'disk') return 0
  return typeof policy === 'object' ? policy.budget : undefined
}

/**
 * A graph with its gradients, the forward values treated as a policy says; the graph needs `cut` marks.
 * @param sizes lengths of the named axes, by which a budget is reckoned.
 */
export function differentiateWithin(
  options: Omit<DifferentiateOptions, 'cut' | 'recompute'>,
  policy: SavedPolicy | undefined,
  sizes: ReadonlyMap<string, number>,
): Differentiated & { readonly recomputed: readonly number[] } {
  const made = (recomputed: readonly number[]) => ({
    ...differentiate({ ...options, cut: true, recompute: (segment) => recomputed.includes(segment) }),
    recomputed,
  })
  if (policy === 'recompute') return made(segmentsIn(options.of))
  const kept = made([])
  if (typeof policy !== 'object') return kept
  return made(recomputedWithin(kept.saved, policy.budget, sizes))
}

function segmentsIn(of: Tensor): number[] {
  return topological([of]).flatMap(({ op, attrs }) => (op.name === 'cut' ? [attrs.index as number] : []))
}

/** Segments to compute again, those that save most first, until what is kept fits. */
function recomputedWithin(saved: Differentiated['saved'], budget: number, sizes: ReadonlyMap<string, number>): number[] {
  const bytes = (t: Tensor) => {
    const shape = t.shape.map((d) => evaluateDim(d, sizes))
    const unknown = t.shape[shape.indexOf(undefined)]
    if (unknown !== undefined && shape.includes(undefined))
      throw new UsageError(`A budget for saved values needs all lengths of axes, but '${unknown}' is not known.`)
    return bytesOf(t.dtype, sizeOf(shape as number[]))
  }
  // What entered a segment stays in either case.
  const stays = (t: Tensor) => t.node.op.name === 'cut'
  const all = new Map<Tensor, number>()
  for (const list of saved.values()) for (const t of list) all.set(t, bytes(t))
  let total = [...all.values()].reduce((a, b) => a + b, 0)
  const gains = [...saved].map(([segment, list]) => ({
    segment,
    gain: [...list].filter((t) => !stays(t)).reduce((sum, t) => sum + (all.get(t) as number), 0),
  }))
  gains.sort((a, b) => b.gain - a.gain || a.segment - b.segment)
  const recomputed: number[] = []
  for (const { segment, gain } of gains) {
    if (total <= budget || gain === 0) break
    recomputed.push(segment)
    total -= gain
  }
  return recomputed
}
