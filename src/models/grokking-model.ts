/** @file The small transformers of the grokking and induction studies (Nanda et al. 2023, arXiv 2301.05217): a file of tensors without a config. */
import { FormatError } from '../base/errors.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import type { Config } from './config.ts'
import { encodeSafetensors, fromBytes, openSafetensors, type WeightStore } from './formats/index.ts'

/** Whether a checkpoint has the names of that study. */
export const looksLikeGrokking = (store: WeightStore): boolean => store.has('embed.W_E') && store.has('pos_embed.W_pos')

/**
 * The config and the weights as the family `grokking` reads them: sizes come from the shapes. Matrices are stored [out, in], heads apart;
 * embedding and unembedding are [d_model, d_vocab]. An unembedding of fewer tokens than the embedding never says the others.
 */
export async function grokkingModel(store: WeightStore): Promise<{ config: Config; store: WeightStore }> {
  const shapeOf = (name: string, rank: number): readonly number[] => {
    const shape = store.tensors.get(name)?.shape
    if (shape?.length !== rank)
      throw new FormatError(`${store.name} has ${shape ? `[${shape.join(', ')}]` : 'nothing'} as '${name}'; it is no model of this study.`)
    return shape
  }
  const stem = store.has('attn_blocks.0.attn.W_Q') ? 'attn_blocks' : 'blocks'
  const layers = [...store.tensors.keys()].filter((n) => n.startsWith(`${stem}.`) && n.endsWith('.attn.W_Q')).length
  const [dModel, vocab] = shapeOf('embed.W_E', 2) as [number, number]
  const [positions] = shapeOf('pos_embed.W_pos', 2) as [number, number]
  const [heads, headDim] = shapeOf(`${stem}.0.attn.W_Q`, 3) as [number, number, number]
  const [, said] = shapeOf('unembed.W_U', 2) as [number, number]
  const dMlp = store.has(`${stem}.0.mlp.W_in`) ? (shapeOf(`${stem}.0.mlp.W_in`, 2)[0] as number) : undefined
  const tensors: Record<string, NDArray> = {}
  for (const { name, shape } of store.tensors.values()) {
    // A buffer of the causal mask.
    if (name.endsWith('.attn.mask')) continue
    const value = { dtype: 'float32', shape, data: await store.readFloat32(name) } as const
    if (name === 'embed.W_E' || name === 'unembed.W_U') tensors[name] = turned(value, vocab)
    else if (/\.W_[QKV]$/.test(name)) tensors[name] = { ...value, shape: [(shape[0] as number) * (shape[1] as number), shape[2] as number] }
    else tensors[name] = value
  }
  if (said < vocab) {
    const never = Float32Array.from({ length: vocab }, (_, t) => (t < said ? 0 : -1e4))
    tensors['unembed.b_U'] = { dtype: 'float32', shape: [vocab], data: never }
  }
  return {
    config: {
      model_type: 'grokking',
      hidden_size: dModel,
      num_hidden_layers: layers,
      num_attention_heads: heads,
      head_dim: headDim,
      vocab_size: vocab,
      max_position_embeddings: positions,
      blocks: stem,
      ...(dMlp === undefined ? {} : { intermediate_size: dMlp }),
      ...(said < vocab ? { unembedding_bias: true } : {}),
    },
    store: await openSafetensors(fromBytes(encodeSafetensors(tensors))),
  }
}

/** [d_model, tokens] to [d_vocab, d_model], zeros for tokens that are not there. */
function turned({ shape, data }: NDArray<Float32Array>, vocab: number): NDArray<Float32Array> {
  const [width, tokens] = shape as [number, number]
  const out = new Float32Array(sizeOf([vocab, width]))
  for (let t = 0; t < tokens; t++) for (let i = 0; i < width; i++) out[t * width + i] = data[i * tokens + t] as number
  return { dtype: 'float32', shape: [vocab, width], data: out }
}
