/** @file A checkpoint as its family publishes it: what other formats have in another order is put back. */
import { listed, ModelError } from '../../base/errors.ts'
import { recordOf } from '../families/index.ts'
import { type Checkpoint, Draft } from './draft.ts'
import { takenRows } from './matrix.ts'
import { blocksOf } from './parts.ts'

/** Settings of ours that say that a file has something in another order than Hugging Face. */
const ours = ['rope_interleaved', 'qkv_concatenated', 'conv1d_transposed'] as const

/** Families whose published checkpoints rotate halves of a head. */
const rotatesHalves = (family: string) =>
  ['llama', 'mistral', 'mixtral', 'smollm3', 'granite', 'minicpm', 'qwen2', 'qwen3'].includes(family)

/** Rows of queries or keys that rotate neighbouring pairs, in the order in which halves rotate. */
function halved(heads: number, width: number): number[] {
  const half = width / 2
  return Array.from({ length: heads * width }, (_, i) => {
    const [head, at] = [Math.floor(i / width), i % width]
    return head * width + (at < half ? 2 * at : 2 * (at - half) + 1)
  })
}

/**
 * The checkpoint in the layout that transformers reads.
 * @throws ModelError where a format has something in an order that is not put back.
 */
export async function asPublished(checkpoint: Checkpoint): Promise<Checkpoint> {
  const set = ours.filter((key) => checkpoint.config[key] === true)
  if (set.length === 0) return checkpoint
  const { kind, spec } = recordOf(checkpoint.config, checkpoint.family)
  const other = set.filter((key) => key !== 'rope_interleaved')
  if (kind !== 'decoder' || other.length > 0 || !rotatesHalves(spec.family))
    throw new ModelError(
      `The file of this ${spec.family} has its weights in another order than transformers (${listed(set)}), which is not put back; save it from its Hugging Face folder.`,
    )
  const draft = new Draft(checkpoint)
  for (const { attention } of blocksOf(draft.spec)) {
    const { projection, rotary, qNorm } = attention
    if (projection.kind !== 'split' || !rotary || qNorm || rotary.dim !== draft.spec.headDim)
      throw new ModelError(`The heads of this ${spec.family} rotate in part or are in one matrix, and their order is not put back.`)
    for (const [l, heads] of [
      [projection.q, draft.spec.heads],
      [projection.k, draft.spec.kvHeads],
    ] as const) {
      const order = halved(heads, draft.spec.headDim)
      draft.change(l, (m) => takenRows(m, order))
      if (l.bias === undefined) continue
      const bias = await draft.vector(l.bias)
      draft.putVector(
        l.bias,
        Float32Array.from(order, (i) => bias[i] as number),
      )
    }
  }
  draft.configure({ rope_interleaved: false })
  const { config, ...rest } = draft.finish('in the published order')
  const { rope_interleaved: _, ...published } = config
  return { ...rest, config: published }
}
