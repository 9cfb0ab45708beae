/** @file Biases of values, folded into those of the output projection. */
import { ModelError } from '../../base/errors.ts'
import type { DecoderSpec, Projection } from '../spec.ts'
import { kind } from './kind.ts'
import { blocksOf } from './parts.ts'

/** Where the values' part of a projection's bias lies: the name, and the index of each coordinate [kvHeads · headDim]. */
function valueBias(p: Projection, { heads, kvHeads, headDim }: DecoderSpec): { name: string; at: number[] } | undefined {
  const width = kvHeads * headDim
  const count = Array.from({ length: width }, (_, i) => i)
  if (p.kind === 'split') return p.v.bias === undefined ? undefined : { name: p.v.bias, at: count }
  if (p.qkv.bias === undefined) return undefined
  if (p.order === 'concatenated') return { name: p.qkv.bias, at: count.map((i) => heads * headDim + width + i) }
  const group = heads / kvHeads + 2
  return { name: p.qkv.bias, at: count.map((i) => ((Math.floor(i / headDim) + 1) * group - 1) * headDim + (i % headDim)) }
}

export const foldValueBiases = kind<object>({
  doc: 'The bias of the values moves into that of the output projection (`fold_value_biases` of TransformerLens): attention to all sums to one.',
  keeps: 'logits',
  params: [],
  async apply(draft) {
    const { spec } = draft
    let folded = 0
    for (const { attention } of blocksOf(spec)) {
      const found = valueBias(attention.projection, spec)
      if (!found) continue
      if (attention.clip)
        throw new ModelError(`The family '${spec.family}' clamps its values, so that their bias is not the same at every position.`)
      if (attention.output.bias === undefined)
        throw new ModelError(`The output projection of the family '${spec.family}' has no bias that could take up that of the values.`)
      const bias = await draft.vector(found.name)
      // Every query head receives the bias of its key-value head.
      const group = spec.heads / spec.kvHeads
      const z = Float32Array.from({ length: spec.heads * spec.headDim }, (_, i) => {
        const head = Math.floor(i / spec.headDim / group)
        return bias[found.at[head * spec.headDim + (i % spec.headDim)] as number] as number
      })
      await draft.shift(attention.output, await draft.applied(attention.output, z)())
      const without = bias.slice()
      for (const i of found.at) without[i] = 0
      draft.putVector(found.name, without)
      folded++
    }
    if (folded === 0) throw new ModelError(`The values of the family '${spec.family}' have no bias to fold.`)
    return { vectors: await draft.vectorsBefore() }
  },
  undo: (draft, _, record) => draft.putBack(record.vectors),
})
