/** @file What a decoder-only language model is made of, as data: families fill this record, one trunk reads it. */

/** A linear layer: names of its parameters in the checkpoint. */
export interface Linear {
  readonly weight: string
  readonly bias?: string
  /** How the matrix is stored: `out,in` (torch Linear) or `in,out` (GPT-2's Conv1D). */
  readonly layout: 'out,in' | 'in,out'
}

/** A normalisation with its parameters. */
export interface Norm {
  readonly kind: 'rms' | 'layer'
  readonly weight: string
  readonly bias?: string
  readonly eps: number
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

/** How a model knows where a token stands. */
export type Positions =
  | {
      readonly kind: 'rotary'
      readonly theta: number
      /** Coordinates of each head that rotate. */
      readonly dim: number
      /** Pairs are neighbours (x0, x1) or halves (x0, x_{n/2}). */
      readonly interleaved: boolean
      readonly scaling: RopeScaling
    }
  | { readonly kind: 'learned'; readonly weight: string; readonly count: number }

/** Activation functions by the names that configs use. */
export type Activation = 'silu' | 'gelu' | 'gelu_tanh' | 'relu'

/** How q, k and v come out of the residual stream. */
export type Projection =
  | { readonly kind: 'split'; readonly q: Linear; readonly k: Linear; readonly v: Linear }
  | { readonly kind: 'fused'; readonly qkv: Linear }

/** The feed-forward part of a block. */
export type Mlp =
  | { readonly kind: 'gated'; readonly gate: Linear; readonly up: Linear; readonly down: Linear; readonly activation: Activation }
  | { readonly kind: 'plain'; readonly up: Linear; readonly down: Linear; readonly activation: Activation }

/** One block. */
export interface BlockSpec {
  readonly attnNorm: Norm
  readonly projection: Projection
  readonly output: Linear
  readonly mlpNorm: Norm
  readonly mlp: Mlp
}

/** A decoder-only language model. */
export interface DecoderSpec {
  /** The `model_type` of its config. */
  readonly family: string
  readonly layers: number
  readonly dModel: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly dMlp: number
  readonly vocab: number
  /** Longest context that the model was made for. */
  readonly maxPositions: number
  readonly positions: Positions
  readonly embedding: string
  readonly block: (layer: number) => BlockSpec
  readonly finalNorm: Norm
  /** The unembedding; the embedding's own matrix when tied. */
  readonly head: Linear
  /** Module path of block `layer` in the checkpoint, for Hugging Face aliases. */
  readonly modules: ModulePaths
}

/** Hugging Face module paths, relative to a block where they repeat. */
export interface ModulePaths {
  readonly blocks: string
  readonly attention: string
  readonly mlp: string
  readonly attnNorm: string
  readonly mlpNorm: string
  readonly embedding: string
  readonly finalNorm: string
  readonly head: string
  readonly extra?: Readonly<Record<string, string>>
}
