/** @file What encoders and encoder–decoders are made of, as data: the blocks are those of the decoders' record. */
import type { Activation, DecoderSpec, Linear, ModulePaths, Norm, Positions, Stack } from './spec.ts'

/** Tokens as they enter a stack. */
export interface TokenInput {
  readonly kind: 'tokens'
  readonly embedding: string
  readonly vocab: number
  /** Factor on the embeddings. */
  readonly scale?: number
  /** Embedding of the kind of each token. */
  readonly types?: { readonly weight: string; readonly count: number }
}

/** An image as it enters a stack: squares of pixels, each one position. */
export interface PixelInput {
  readonly kind: 'pixels'
  /** Pixels along each side of the image. */
  readonly image: number
  /** Pixels along each side of a patch. */
  readonly patch: number
  readonly channels: number
  /** Weight [d_model, channel, patch, patch] and bias of the projection of a patch. */
  readonly projection: { readonly weight: string; readonly bias?: string }
  /** Learned positions that come before the patches and take part in the position embeddings (class and distillation tokens). */
  readonly first: readonly LearnedTokens[]
  /** Learned positions that are put between those and the patches after position embeddings were added. */
  readonly registers?: LearnedTokens
  /** Position embeddings, as they are stored. */
  readonly positions: { readonly weight: string; readonly shape: readonly number[] }
}

/** A parameter that stands for `count` positions. */
export interface LearnedTokens {
  readonly weight: string
  readonly shape: readonly number[]
  readonly count: number
}

/** Biases on scores that depend on the distance of key and query, learned for classes of distances (T5). */
export interface DistanceBias {
  /** Weight [classes, head]. */
  readonly weight: string
  readonly classes: number
  /** Distances from here on are one class. */
  readonly furthest: number
}

/** A stack of blocks from its input to its last norm. */
export interface StackSpec extends Stack {
  readonly positions: Positions | { readonly kind: 'distance'; readonly bias: DistanceBias } | { readonly kind: 'image' }
  /** On the embeddings. */
  readonly inputNorm?: Norm
  readonly finalNorm?: Norm
  readonly modules: ModulePaths
}

/** An encoder: its output is the last residual stream, after a norm where it has one. */
export interface EncoderSpec extends StackSpec {
  /** The `model_type` of its config. */
  readonly family: string
  readonly input: TokenInput | PixelInput
  /** A position sees none after it (the text towers of CLIP and its kin). */
  readonly causal?: boolean
  /** Longest input that the model was made for. */
  readonly maxPositions: number
  readonly otherNames?: (name: string) => readonly string[]
  /** The checkpoint's name of a parameter that the reference calls so in memory. */
  readonly storedName?: (name: string) => string
  readonly foreign?: readonly string[]
}

/** An encoder and a decoder that reads its output. */
export interface EncoderDecoderSpec {
  /** The `model_type` of its config. */
  readonly family: string
  readonly dModel: number
  readonly vocab: number
  readonly maxPositions: number
  readonly encoder: StackSpec & { readonly input: TokenInput }
  readonly decoder: StackSpec & { readonly input: TokenInput }
  readonly head: Linear
  /** Added to the logits, as it is stored. */
  readonly headBias?: { readonly weight: string; readonly shape: readonly number[] }
  /** Factor on what the unembedding reads. */
  readonly headScale?: number
  /** Token with which the decoder starts. */
  readonly startToken: number
  readonly otherNames?: (name: string) => readonly string[]
  readonly foreign?: readonly string[]
}

/** A text and a vision encoder whose outputs are compared in a common space (CLIP, arXiv 2103.00020). */
export interface TwoTowersSpec {
  /** The `model_type` of its config. */
  readonly family: string
  readonly text: EncoderSpec
  readonly vision: EncoderSpec
  /** What the names of each tower's parameters begin with. */
  readonly prefixes: { readonly text: string; readonly vision: string }
  /** Width of the common space. */
  readonly width: number
  /** The position that stands for a text: the first of this token, or the one of the largest id. */
  readonly pool: { readonly token: number } | 'largest id'
  /** On the first position of the image. */
  readonly visionNorm: Norm
  readonly textProjection: Linear
  readonly visionProjection: Linear
  /** Logarithm of the factor on the products. */
  readonly logitScale: string
  readonly otherNames?: (name: string) => readonly string[]
  readonly foreign?: readonly string[]
}

/** A language model in which features of images take the places of their tokens (LLaVA, arXiv 2304.08485). */
export interface ImagePrefixSpec {
  /** The `model_type` of its config. */
  readonly family: string
  readonly vision: EncoderSpec
  readonly language: DecoderSpec
  /** What the names of each part's parameters begin with. */
  readonly prefixes: { readonly vision: string; readonly language: string; readonly projector: string }
  /** Token in whose places features are put. */
  readonly imageToken: number
  /** Blocks of the tower after which features are taken. */
  readonly layer: number
  /** Positions before the patches that are left out. */
  readonly dropped: number
  readonly projector: { readonly first: Linear; readonly second: Linear; readonly activation: Activation }
  readonly otherNames?: (name: string) => readonly string[]
  readonly foreign?: readonly string[]
}

/** A language model of selective state spaces (Mamba, arXiv 2312.00752). */
export interface MambaSpec {
  /** The `model_type` of its config. */
  readonly family: string
  readonly layers: number
  readonly dModel: number
  readonly vocab: number
  /** Channels of the state spaces, states of each channel, tokens that the convolution sees, width that step sizes come from. */
  readonly inner: number
  readonly states: number
  readonly kernel: number
  readonly rank: number
  readonly embedding: string
  readonly norm: (layer: number) => Norm
  readonly mixer: (layer: number) => {
    readonly in: Linear
    /** Weight [channel, 1, kernel]. */
    readonly convolution: { readonly weight: string; readonly bias?: string }
    /** Gives the step, what enters a state and what is read of it. */
    readonly select: Linear
    readonly step: Linear
    /** Logarithm of the rates at which states decay, [channel, state]. */
    readonly logDecay: string
    /** Factor on what goes past the states. */
    readonly skip: string
    readonly out: Linear
  }
  readonly finalNorm: Norm
  readonly head: Linear
  readonly modules: ModulePaths
  readonly otherNames?: (name: string) => readonly string[]
  readonly foreign?: readonly string[]
}
