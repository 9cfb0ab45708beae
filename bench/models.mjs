/** @file Models of the benchmarks: stories15M, and the shape of SmolLM2-135M with random weights. */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { homeFolders } from '../dist/base/files.js'
import { load } from '../dist/index.js'
import { createSafetensorsWriter } from '../dist/models/formats/index.js'

const smolConfig = {
  model_type: 'llama',
  hidden_size: 576,
  intermediate_size: 1536,
  num_hidden_layers: 30,
  num_attention_heads: 9,
  num_key_value_heads: 3,
  head_dim: 64,
  vocab_size: 49152,
  max_position_embeddings: 2048,
  rms_norm_eps: 1e-5,
  rope_theta: 100000,
  hidden_act: 'silu',
  tie_word_embeddings: true,
}

/** Folder of a checkpoint of that shape, made once. */
async function smolShape(home) {
  const folder = join(home, 'smollm2-135m-shape')
  if (existsSync(join(folder, 'config.json'))) return folder
  mkdirSync(folder, { recursive: true })
  const { hidden_size: d, intermediate_size: f, vocab_size: v, num_hidden_layers: L } = smolConfig
  const kv = 192
  const shapes = { 'model.embed_tokens.weight': [v, d], 'model.norm.weight': [d] }
  for (let l = 0; l < L; l++)
    Object.assign(
      shapes,
      Object.fromEntries(
        Object.entries({
          input_layernorm: [d],
          'self_attn.q_proj': [d, d],
          'self_attn.k_proj': [kv, d],
          'self_attn.v_proj': [kv, d],
          'self_attn.o_proj': [d, d],
          post_attention_layernorm: [d],
          'mlp.gate_proj': [f, d],
          'mlp.up_proj': [f, d],
          'mlp.down_proj': [d, f],
        }).map(([n, s]) => [`model.layers.${l}.${n}.weight`, s]),
      ),
    )
  const entries = Object.entries(shapes).map(([name, shape]) => ({ name, dtype: 'float32', shape }))
  const writer = await createSafetensorsWriter(join(folder, 'model.safetensors'), entries)
  let state = 1
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32 - 0.5
  }
  for (const { name, shape } of entries) {
    const norm = shape.length === 1
    const scale = norm ? 0.2 : 2 / Math.sqrt(shape[1])
    await writer.write(
      name,
      Float32Array.from({ length: shape.reduce((p, n) => p * n, 1) }, () => (norm ? 1 : 0) + random() * scale),
    )
  }
  await writer.finish()
  writeFileSync(join(folder, 'config.json'), JSON.stringify(smolConfig, null, 2))
  return folder
}

/** Loads a model and what the hand-fused contender must know of it. */
export async function benchModel(name, options) {
  const home = join(homeFolders().cache, 'bench')
  mkdirSync(home, { recursive: true })
  const embedded = name === 'stories15M'
  const model = await load(embedded ? 'embedded' : existsSync(name) ? name : await smolShape(home), options)
  const facts = {
    spec: model.spec,
    weights: model.weights,
    interleaved: embedded,
    tied: true,
    theta: embedded ? 10000 : 100000,
    context: model.contextLength,
  }
  return { model, facts, file: join(home, `${basename(name)}-in-out.f32`) }
}

/** Token ids of a row, the same everywhere. */
export const row = (vocab, n, salt = 0) => Array.from({ length: n }, (_, i) => 3 + ((i * 7919 + salt * 104729) % (vocab - 3)))
