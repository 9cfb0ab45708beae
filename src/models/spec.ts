/** @file What a decoder-only language model is made of, as data: families fill this record, one trunk reads it. */

/** A linear layer: names of its parameters in the checkpoint. */
export interface Linear {
  readonly weight: string
  readonly bias?: string
  /** How the matrix is stored: `out,in` (torch Linear) or `in,out` (GPT-2's Conv1D). */
  readonly layout: 'out,in' | 'in,out'
  /** The matrix is item `at` of a stack of `of` matrices. */
  readonly item?: { readonly at: number; readonly of: number }
}

/** A normalisation over the last axis, with its parameters. */
export interface Norm {
  readonly kind: 'rms' | 'layer'
  /** The gain; none where the norm only normalises. */
  readonly weight?: string
  readonly bias?: string
  readonly eps: number
  /** The gain is stored less one. */
  readonly plusOne?: boolean
}

/** A normalisation of queries or keys. */
export interface HeadNorm extends Omit<Norm, 'weight'> {
  /** Over one head with the gain of all heads, over one head with a gain of its own, or over all heads at once. */
  readonly over: 'head' | 'own head' | 'all heads'
  /** One parameter, or one for each head. */
  readonly weight?: string | readonly string[]
}

/** How RoPE stretches beyond its training length. */
export type RopeScaling =
  | { readonly kind: 'none' }
  | { readonly kind: 'linear'; readonly factor: number }
  | {
      readonly kind: 'llama3'
      readonly factor: number
      readonly lowFreqFactor: number
      readonly highFreqFactor: number
      readonly originalMaxPositions: number
    }
  | {
      readonly kind: 'yarn'
      readonly factor: number
      readonly betaFast: number
      readonly betaSlow: number
      readonly originalMaxPositions: number
      /** The ends of the ramp are whole numbers. */
      readonly truncate: boolean
      /** Factor on cosines and sines. */
      readonly amplitude: number
    }
  /** The base grows with the length of the run, beyond the original length. */
  | { readonly kind: 'dynamic'; readonly factor: number; readonly originalMaxPositions: number }
  /** Each frequency has a divisor: one list up to the original length, another for longer runs. */
  | {
      readonly kind: 'longrope'
      readonly short: readonly number[]
      readonly long: readonly number[]
      readonly originalMaxPositions: number
      readonly amplitude: number
    }

/** Rotation of queries and keys by their position. */
export interface Rotary {
  readonly theta: number
  /** Coordinates of each head that rotate. */
  readonly dim: number
  /** What the exponents of the frequencies are divided by, where it is not `dim`. */
  readonly exponentDim?: number
  /** Pairs are neighbours (x0, x1) or halves (x0, x_{n/2}). */
  readonly interleaved: boolean
  readonly scaling: RopeScaling
}

/** How a model knows where a token stands. Where only some layers rotate, or differently, their `attention.rotary` says so. */
export type Positions =
  | ({ readonly kind: 'rotary' } & Rotary)
  | {
      readonly kind: 'learned'
      readonly weight: string
      /** Positions that can be used. */
      readonly count: number
      /** Rows of the table before the one of position 0. */
      readonly offset: number
    }
  | {
      readonly kind: 'alibi'
      /** Added to a score for each position of the key, by head. */
      readonly slopes: readonly number[]
      /** The model was trained with biases rounded to this type, times the factor. */
      readonly rounded?: { readonly to: 'bfloat16'; readonly factor: number }
    }
  | { readonly kind: 'none' }

/** Activation functions by the names that the record uses. */
export type Activation = 'silu' | 'gelu' | 'gelu_tanh' | 'quick_gelu' | 'relu' | 'relu_squared' | 'tanh' | 'sigmoid'

/** How q, k and v come out of the residual stream. */
export type Projection =
  | { readonly kind: 'split'; readonly q: Linear; readonly k: Linear; readonly v: Linear }
  /** One matrix: first all of q, then k, then v; or for each key-value head its queries, its key and its value. */
  | { readonly kind: 'fused'; readonly qkv: Linear; readonly order: 'concatenated' | 'by key-value head' }

/** Attention of one block. */
export interface AttentionSpec {
  readonly projection: Projection
  readonly output: Linear
  /** Factor on q·k. */
  readonly scale: number
  /** Absent where this layer does not rotate. */
  readonly rotary?: Rotary
  /** Only the last `window` keys are seen; in an encoder, those less than `window` away. */
  readonly window?: number
  /** Scores become c·tanh(score/c). */
  readonly softcap?: number
  readonly qNorm?: HeadNorm
  readonly kNorm?: HeadNorm
  /** q, k and v are clamped to ± this value. */
  readonly clip?: number
}

/** A feed-forward network without routing. */
export type DenseMlp =
  | { readonly kind: 'plain'; readonly up: Linear; readonly down: Linear; readonly activation: Activation }
  | {
      readonly kind: 'gated'
      /** Two matrices, or one that holds the gate first and then the up projection. */
      readonly gate: { readonly gate: Linear; readonly up: Linear } | { readonly gateUp: Linear }
      readonly down: Linear
      readonly activation: Activation
    }

/** A mixture of experts: a router chooses some of them for each token. */
export interface ExpertMlp {
  readonly kind: 'experts'
  readonly router: Linear
  readonly count: number
  /** Experts that each token goes to. */
  readonly perToken: number
  /** Width of one expert. */
  readonly width: number
  /** The weights of the chosen experts are scaled to sum to one. */
  readonly normalised: boolean
  readonly expert: (index: number) => DenseMlp
  /** A network that every token passes, times the sigmoid of its gate where it has one. */
  readonly shared?: { readonly mlp: DenseMlp; readonly width: number; readonly gate?: Linear }
}

/** The feed-forward part of a block; `none` where a block is attention alone. */
export type Mlp = DenseMlp | ExpertMlp | { readonly kind: 'none' }

/** One block. */
export interface BlockSpec {
  /** The MLP reads the stream after attention was added, or both read the same. */
  readonly residual: 'sequential' | 'parallel'
  /** Before attention; in a parallel block without `mlpNorm` also before the MLP. */
  readonly attnNorm?: Norm | undefined
  readonly attention: AttentionSpec
  /** On the output of attention, before it is added. */
  readonly attnPostNorm?: Norm | undefined
  /** On the residual stream, after attention was added. */
  readonly attnSumNorm?: Norm | undefined
  readonly mlpNorm?: Norm | undefined
  readonly mlp: Mlp
  /** On the output of the MLP, before it is added. */
  readonly mlpPostNorm?: Norm | undefined
  /** On the residual stream, after the MLP was added. */
  readonly mlpSumNorm?: Norm | undefined
  /** Factor on what attention and MLP add. */
  readonly multiplier?: number
  /** Parameters that multiply what attention and MLP add, for each coordinate. */
  readonly attnGain?: string
  readonly mlpGain?: string
  /** Attention to another stack, between attention and MLP, with the norm before it or on the sum after it. */
  readonly cross?: { readonly norm?: Norm; readonly attention: AttentionSpec; readonly sumNorm?: Norm }
  /** Modules of the reference that add the residual stream themselves, so that it is part of their output. */
  readonly addsInside?: readonly ('attn_out' | 'mlp_out')[]
}

/** A stack of blocks. */
export interface Stack {
  readonly layers: number
  readonly dModel: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  /** Width of the MLP of blocks without experts. */
  readonly dMlp: number
  readonly block: (layer: number) => BlockSpec
}

/** A decoder-only language model. */
export interface DecoderSpec extends Stack {
  /** The `model_type` of its config. */
  readonly family: string
  readonly vocab: number
  /** Longest context that the model was made for. */
  readonly maxPositions: number
  readonly positions: Positions
  readonly embedding: string
  /** Factor on the embeddings. */
  readonly embeddingScale?: number
  readonly embeddingNorm?: Norm
  /** Embeddings of another width, with the projections between it and the residual stream. */
  readonly narrow?: { readonly width: number; readonly in: Linear; readonly out: Linear }
  readonly finalNorm?: Norm
  /** The unembedding; the embedding's own matrix when tied. */
  readonly head: Linear
  /** Factor on the logits. */
  readonly logitScale?: number
  /** Logits become c·tanh(logit/c). */
  readonly logitSoftcap?: number
  /** Module paths in the checkpoint, for Hugging Face aliases. */
  readonly modules: ModulePaths
  /** Other names under which checkpoints have the tensor that this record calls so. */
  readonly otherNames?: (name: string) => readonly string[]
  /** Beginnings of names of tensors in the checkpoint that belong to something else, as a vision tower does. */
  readonly foreign?: readonly string[]
}

/** Hugging Face module paths, relative to a block where they repeat. */
export interface ModulePaths {
  readonly blocks: string
  readonly attention: string
  /** Absent where the MLP is no module of its own. */
  readonly mlp?: string
  /** Absent where the module's output is not yet what the residual stream receives. */
  readonly embedding?: string
  readonly finalNorm?: string
  /** Absent where the model gives out its last states. */
  readonly head?: string
  /** Modules whose output is the site of that name, relative to a block. */
  readonly sites?: Readonly<Record<string, string>>
}

/** Whether a block has a feed-forward network. */
export const hasMlp = (spec: Stack, layer: number): boolean => spec.block(layer).mlp.kind !== 'none'

/** Number of experts of a model and of those chosen for each token; undefined without experts. */
export function expertsOf(spec: Stack): { readonly count: number; readonly perToken: number } | undefined {
  for (let layer = 0; layer < spec.layers; layer++) {
    const { mlp } = spec.block(layer)
    if (mlp.kind === 'experts') return mlp
  }
  return undefined
}
