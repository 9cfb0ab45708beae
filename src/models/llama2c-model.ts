/** @file A llama2.c file as a model: what its header says, in the words of a Llama config. */
import type { Config } from './config.ts'
import { type ByteSource, type Llama2cStore, openLlama2c } from './formats/index.ts'

/** The weights and config of a llama2.c file, or of the part of a file that is one. */
export async function llama2cModel(
  file: ByteSource,
  range?: { readonly offset: number; readonly length: number },
): Promise<{ store: Llama2cStore; config: Config }> {
  const store = await openLlama2c(file, range ? { range } : {})
  const c = store.config
  const config: Config = {
    model_type: 'llama',
    hidden_size: c.dim,
    intermediate_size: c.hiddenDim,
    num_hidden_layers: c.layers,
    num_attention_heads: c.heads,
    num_key_value_heads: c.kvHeads,
    vocab_size: c.vocab,
    max_position_embeddings: c.maxPos,
    tie_word_embeddings: c.tied,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000,
    rope_interleaved: true,
  }
  return { store, config }
}
