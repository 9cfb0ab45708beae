/** @file Directions taken out of what matrices write: the mean (centring), or a direction such as that of refusal. */
import { ModelError, ShapeError } from '../../base/errors.ts'
import { kind } from './kind.ts'
import { normReaders, writers } from './parts.ts'

/** The direction of the mean: unit length, all coordinates equal. */
const meanDirection = (width: number) => new Float32Array(width).fill(1 / Math.sqrt(width))

export const centreWriting = kind<object>({
  doc: 'Every matrix that writes the residual stream writes vectors of mean zero (`center_writing_weights` of TransformerLens). Layer norms subtract the mean anyway.',
  keeps: 'logits',
  params: [],
  async apply(draft) {
    const other = normReaders(draft.spec).find((r) => r.norm.kind !== 'layer')
    if (other || !draft.spec.finalNorm)
      throw new ModelError(
        `The family '${draft.spec.family}' reads the mean of its residual stream (${other ? `the norm at ${other.site} does not subtract it` : 'it has no final norm'}), so centring would change what it computes.`,
      )
    draft.untie()
    for (const w of writers(draft.spec)) await draft.project(w, meanDirection(draft.spec.dModel))
    return {}
  },
})

export const centreUnembedding = kind<object>({
  doc: 'The unembedding has mean zero over the vocabulary (`center_unembed` of TransformerLens): all logits of a position change by the same number.',
  keeps: 'probabilities',
  params: [],
  async apply(draft) {
    if (draft.spec.logitSoftcap)
      throw new ModelError(
        `The family '${draft.spec.family}' caps its logits, and a constant before the cap is none after it; so the unembedding cannot be centred.`,
      )
    draft.untie()
    await draft.project(draft.spec.head, meanDirection(draft.spec.vocab))
    return {}
  },
})

export const orthogonalise = kind<{ readonly direction: ArrayLike<number> }>({
  doc: 'Every matrix that writes the residual stream writes nothing along a direction (weight orthogonalisation, Arditi et al. 2024, arXiv 2406.11717).',
  keeps: 'nothing',
  params: ['direction'],
  async apply(draft, { direction }) {
    const { dModel } = draft.spec
    if (direction.length !== dModel)
      throw new ShapeError(`The direction has ${direction.length} coordinates, but the residual stream has ${dModel}.`)
    const norm = Math.sqrt(Array.from(direction).reduce((sum, v) => sum + v * v, 0))
    if (!(norm > 0 && Number.isFinite(norm)))
      throw new ModelError('The direction has no length, so there is nothing to take out; give another.')
    // The unembedding reads the stream: it stays as it is.
    draft.untie()
    const unit = Float32Array.from(direction, (v) => v / norm)
    for (const w of writers(draft.spec)) await draft.project(w, unit)
    return {}
  },
})
