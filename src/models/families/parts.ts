/** @file What the tables of the families share: activations by their names in configs, constructors of records, common settings. */
import type { ConfigReader } from '../config.ts'
import type { Activation, DenseMlp, HeadNorm, Linear, Norm } from '../spec.ts'

/** Activation functions by the names that configs use. */
export const activations: Readonly<Record<string, Activation>> = {
  gelu: 'gelu',
  gelu_python: 'gelu',
  gelu_new: 'gelu_tanh',
  gelu_fast: 'gelu_tanh',
  gelu_pytorch_tanh: 'gelu_tanh',
  quick_gelu: 'quick_gelu',
  silu: 'silu',
  swish: 'silu',
  relu: 'relu',
  relu2: 'relu_squared',
  tanh: 'tanh',
  sigmoid: 'sigmoid',
}

/** A torch Linear at a module path. */
export const linear = (path: string, bias = false): Linear => ({
  weight: `${path}.weight`,
  ...(bias ? { bias: `${path}.bias` } : {}),
  layout: 'out,in',
})

/** A Conv1D of GPT-2 at a module path. */
export const conv1d = (path: string): Linear => ({ weight: `${path}.weight`, bias: `${path}.bias`, layout: 'in,out' })

/** An RMS norm at a module path. */
export const rms = (path: string, eps: number, plusOne = false): Norm => ({
  kind: 'rms',
  weight: `${path}.weight`,
  eps,
  ...(plusOne ? { plusOne } : {}),
})

/** A layer norm at a module path. */
export const layerNorm = (path: string, eps: number, bias = true): Norm => ({
  kind: 'layer',
  weight: `${path}.weight`,
  ...(bias ? { bias: `${path}.bias` } : {}),
  eps,
})

/** A norm of queries or keys. */
export const over = (what: HeadNorm['over'], norm: Norm): HeadNorm => ({ ...norm, over: what })

/** The gated MLP of the Llama layout. */
export const gated = (path: string, activation: Activation, bias = false): DenseMlp => ({
  kind: 'gated',
  gate: { gate: linear(`${path}.gate_proj`, bias), up: linear(`${path}.up_proj`, bias) },
  down: linear(`${path}.down_proj`, bias),
  activation,
})

/** A gated MLP whose gate and up projection are one matrix. */
export const fusedGate = (path: string, activation: Activation): DenseMlp => ({
  kind: 'gated',
  gate: { gateUp: linear(`${path}.gate_up_proj`) },
  down: linear(`${path}.down_proj`),
  activation,
})

/** Gated experts whose matrices are stacked, as GGUF files have them. */
export const stackedExpert =
  (path: string, activation: Activation, count: number) =>
  (at: number): DenseMlp => {
    const item = (name: string): Linear => ({ ...linear(`${path}.${name}`), item: { at, of: count } })
    return { kind: 'gated', gate: { gate: item('gate_proj'), up: item('up_proj') }, down: item('down_proj'), activation }
  }

/** The order of a fused projection: GGUF files have it sorted. */
export const fusedOrder = (c: ConfigReader) =>
  c.flag('qkv_concatenated', false) ? ('concatenated' as const) : ('by key-value head' as const)

/** Sizes under the names that most configs use. */
export function commonSizes(c: ConfigReader) {
  const dModel = c.integer('hidden_size', 'n_embd', 'd_model')
  const heads = c.integer('num_attention_heads', 'n_head', 'n_heads', 'num_heads')
  return {
    layers: c.integer('num_hidden_layers', 'n_layer', 'n_layers', 'num_layers'),
    dModel,
    heads,
    kvHeads: c.optionalInteger('num_key_value_heads') ?? heads,
    headDim: c.optionalInteger('head_dim') ?? dModel / heads,
    dMlp: c.optionalInteger('intermediate_size', 'n_inner', 'ffn_dim') ?? 4 * dModel,
    vocab: c.integer('vocab_size'),
  }
}

/** Which layers see only the last `sliding_window` keys: by `layer_types` where the config has them, else by the family's rule. */
export function windowOf(c: ConfigReader, otherwise: (layer: number) => boolean): (layer: number) => number | undefined {
  const types = c.optionalNames('layer_types')
  const window = c.optionalInteger('sliding_window')
  return (layer) => ((types ? types[layer] === 'sliding_attention' : otherwise(layer)) && window ? window : undefined)
}

/** Slopes of ALiBi: powers of 2^(-8/n) for the next lower power of two of heads, then those between (arXiv 2108.12409). */
export function alibiSlopes(heads: number): number[] {
  const n = 2 ** Math.floor(Math.log2(heads))
  const slopes = Array.from({ length: n }, (_, i) => 2 ** ((-8 / n) * (i + 1)))
  const between = Array.from({ length: heads - n }, (_, i) => 2 ** ((-4 / n) * (2 * i + 1)))
  return [...slopes, ...between]
}
