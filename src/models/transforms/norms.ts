/** @file Gains and biases of norms, folded into the layers that read them. */
import { ModelError } from '../../base/errors.ts'
import type { Norm } from '../spec.ts'
import type { Draft } from './draft.ts'
import { kind } from './kind.ts'
import { type NormReaders, normReaders } from './parts.ts'

type Vectors = Readonly<Record<string, Float32Array>>

interface FoldRecord {
  /** Gains and biases as they were, by name. */
  readonly vectors: Vectors
  /** The unembedding was the embedding. */
  readonly tied: boolean
}

/** The gain that changes nothing, as the checkpoint would have it. */
const neutral = ({ plusOne }: Norm, width: number) => new Float32Array(width).fill(plusOne ? 0 : 1)

/** The gain that a norm multiplies by. */
const effective = ({ plusOne }: Norm, stored: Float32Array) => (plusOne ? stored.map((v) => v + 1) : stored)

/**
 * n·g + b before W is n before diag(g)·W, with b·W in the bias where every reader has one. Where one has none, the norm keeps the bias b/g.
 */
async function foldOne(draft: Draft, { norm, readers, site }: NormReaders): Promise<void> {
  const { weight, bias } = norm
  if (weight === undefined) return
  const gain = effective(norm, await draft.vector(weight))
  if (bias !== undefined) {
    const shift = await draft.vector(bias)
    if (readers.every((r) => r.bias !== undefined)) {
      const shifts = await Promise.all(readers.map((r) => draft.applied(r, shift)()))
      for (const [i, r] of readers.entries()) await draft.shift(r, shifts[i] as Float32Array)
      draft.putVector(bias, new Float32Array(shift.length))
    } else {
      if (gain.some((g, i) => g === 0 && shift[i] !== 0))
        throw new ModelError(
          `The norm at ${site} has a bias where its gain is 0, and a layer that reads it has no bias to take that up; so its gain cannot be folded.`,
        )
      draft.putVector(
        bias,
        shift.map((b, i) => (b === 0 ? 0 : b / (gain[i] as number))),
      )
    }
  }
  for (const r of readers) draft.scale(r, 'in', gain)
  draft.putVector(weight, neutral(norm, gain.length))
}

export const foldNorms = kind<object>({
  doc: 'The gain (and bias) of every norm moves into the layers that read it, so that they read the normalised stream alone.',
  keeps: 'logits',
  params: [],
  async apply(draft) {
    const readers = normReaders(draft.spec).filter((r) => r.norm.weight !== undefined)
    if (readers.length === 0)
      throw new ModelError(`The family '${draft.spec.family}' has no norm before a layer whose gain could move into it.`)
    const tied = draft.untie()
    for (const r of normReaders(draft.spec)) await foldOne(draft, r)
    return { vectors: await draft.vectorsBefore(), tied } satisfies FoldRecord
  },
  async undo(draft, _, record) {
    const { vectors, tied } = record as unknown as FoldRecord
    for (const { norm, readers, site } of normReaders(draft.spec)) {
      const before = norm.weight && vectors[norm.weight]
      if (!before) continue
      const gain = effective(norm, before)
      if (gain.includes(0)) throw new ModelError(`The gain at ${site} has zeros, so what it multiplied is lost and cannot be brought back.`)
      const inverse = gain.map((g) => 1 / g)
      for (const r of readers) if (!(tied && r.weight === draft.spec.head.weight)) draft.scale(r, 'in', inverse)
    }
    draft.putBack(vectors)
    if (!tied) return
    const own = draft.spec.head.weight
    draft.configure({ tie_word_embeddings: true })
    draft.remove(own)
  },
})
