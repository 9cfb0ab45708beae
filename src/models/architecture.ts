/** @file What running a model needs to know of it, whatever its kind: its stacks, what it reads, how it is traced. One row for each kind. */
import { ModelError } from '../base/errors.ts'
import type { EncoderDecoderSpec, EncoderSpec, ImagePrefixSpec, MambaSpec, PixelInput, TokenInput, TwoTowersSpec } from './encoder-spec.ts'
import type { DecoderSpec, Linear, ModulePaths, Norm, Stack } from './spec.ts'
import { inputNames, type TracedModel, type TraceOptions } from './traced.ts'
import { traceDecoder } from './trunks/decoder.ts'
import { pixelsName, traceEncoder } from './trunks/encoder.ts'
import { sourceNames, traceEncoderDecoder } from './trunks/encoder-decoder.ts'
import { imagePositions } from './trunks/inputs.ts'
import { traceMamba } from './trunks/mamba.ts'
import type { Parameters } from './trunks/parts.ts'
import { traceImagePrefix, traceTwoTowers } from './trunks/towers.ts'
import type { ReadSpec } from './weights.ts'

/** The record of a model, by its kind. */
export type ModelRecord =
  | { readonly kind: 'decoder'; readonly spec: DecoderSpec }
  | { readonly kind: 'encoder'; readonly spec: EncoderSpec }
  | { readonly kind: 'encoder-decoder'; readonly spec: EncoderDecoderSpec }
  | { readonly kind: 'two-towers'; readonly spec: TwoTowersSpec }
  | { readonly kind: 'image-prefix'; readonly spec: ImagePrefixSpec }
  | { readonly kind: 'state-space'; readonly spec: MambaSpec }

/** Names of the sequences that models read: what they write or encode, what an encoder reads for a decoder, the patches of an image. */
export type SequenceName = 'text' | 'source' | 'image'

/** A stack of blocks, as its sites are named and sized. */
export interface StackView extends Stack {
  readonly family: string
  readonly positions: { readonly kind: string }
  readonly finalNorm?: Norm
  readonly modules: ModulePaths
  /** The unembedding, where there is one. */
  readonly head?: Linear
  readonly vocab?: number
  /** Comes before the names of its sites: '' or `encoder.`. */
  readonly prefix?: string
  /** The sequence that its positions belong to. */
  readonly sequence?: SequenceName
  /** Sites that the model has once and in this stack, besides those that every stack can have. */
  readonly extras?: readonly string[]
  /** All its sites, where its blocks are of another make than attention and a feed-forward network. */
  readonly only?: readonly string[]
}

/** A sequence of tokens: the names of its tensors for the caller, and of the inputs that are fed. */
export interface TokenSequence {
  readonly kind: 'tokens'
  readonly name: SequenceName
  readonly vocab: number
  /** Hugging Face names of the tensors. */
  readonly tensors: { readonly ids: string; readonly mask: string; readonly positions?: string; readonly types?: string }
  /** Names of the traced inputs, by those of a decoder's. */
  readonly inputs: Readonly<Record<keyof typeof inputNames, string>>
  /** Ids of the only row where the caller gives none. */
  readonly start?: readonly number[]
  /** The token in whose places the positions of another sequence are put, and how many each row of that one has. */
  readonly image?: { readonly token: number; readonly positions: number }
}

/** An image as a sequence of patches. */
export interface PixelSequence {
  readonly kind: 'pixels'
  readonly name: SequenceName
  /** Hugging Face name of the tensor and of the input. */
  readonly pixels: string
  /** [channel, row, column] */
  readonly shape: readonly [number, number, number]
  readonly positions: number
  /** Its rows are counted apart from those of the first sequence. */
  readonly apart?: true
}

/** What a model reads. */
export type Sequence = TokenSequence | PixelSequence

/** What running a model needs to know of it. */
export interface Architecture {
  readonly kind: ModelRecord['kind']
  readonly family: string
  /** How its checkpoint is read. */
  readonly read: ReadSpec
  readonly stacks: readonly [StackView, ...StackView[]]
  /** What it reads; the first is the one whose length and rows a run is said to have. */
  readonly sequences: readonly [Sequence, ...Sequence[]]
  /** Longest sequence that it was made for. */
  readonly maxPositions: number
  /** Positions that it has and no more, where they are learned. */
  readonly learnedPositions?: number
  /** Sites of what it gives out: `logits`, or the last states of a model without. */
  readonly outputs: readonly string[]
  /** The stack that writes text. */
  readonly writer?: StackView
  /** It has no cache of keys and values: each step of a generation goes through the whole row. */
  readonly recomputes?: true
  /** Sites that a generation computes once, and from which each step starts. */
  readonly once: readonly string[]
  /** Residual sites can have a place where additive edits are fed. */
  readonly slots: boolean
  /** Positions enter by rotation inside attention, so that explicit ones need it written out. */
  readonly rotates: boolean
  readonly trace: (parameters: Parameters, options: TraceOptions) => TracedModel
}

const text = (vocab: number): TokenSequence => ({
  kind: 'tokens',
  name: 'text',
  vocab,
  tensors: { ids: 'input_ids', mask: 'attention_mask', positions: 'position_ids' },
  inputs: inputNames,
})

const image = (input: PixelInput): PixelSequence => ({
  kind: 'pixels',
  name: 'image',
  pixels: pixelsName,
  shape: [input.channels, input.image, input.image],
  positions: imagePositions(input),
})

const learned = (positions: StackView['positions']) => {
  const { kind, count } = positions as { kind: string; count?: number }
  return kind === 'learned' && count !== undefined ? { learnedPositions: count } : {}
}

function ofDecoder(spec: DecoderSpec): Omit<Architecture, 'kind'> {
  return {
    family: spec.family,
    read: spec,
    stacks: [spec],
    sequences: [text(spec.vocab)],
    maxPositions: spec.maxPositions,
    ...learned(spec.positions),
    outputs: ['logits'],
    writer: spec,
    once: [],
    slots: true,
    rotates: spec.positions.kind === 'rotary',
    trace: (parameters, options) => traceDecoder(spec, parameters, options),
  }
}

function ofEncoder(spec: EncoderSpec): Omit<Architecture, 'kind'> {
  const { input } = spec
  const sequence: Sequence =
    input.kind === 'tokens'
      ? {
          ...text(input.vocab),
          tensors: { ...text(input.vocab).tensors, ...(input.types ? { types: 'token_type_ids' } : {}) },
        }
      : image(input)
  return {
    family: spec.family,
    read: spec,
    stacks: [{ ...spec, sequence: sequence.name, ...(input.kind === 'tokens' ? { vocab: input.vocab } : {}) }],
    sequences: [sequence],
    maxPositions: spec.maxPositions,
    ...learned(spec.positions),
    outputs: ['last_hidden_state'],
    once: [],
    slots: false,
    rotates: false,
    trace: (parameters) => traceEncoder(spec, parameters),
  }
}

function ofEncoderDecoder(spec: EncoderDecoderSpec): Omit<Architecture, 'kind'> {
  const { family, vocab, head } = spec
  const decoder: StackView = { ...spec.decoder, family, vocab, head, prefix: 'decoder.', sequence: 'text' }
  const encoder: StackView = { ...spec.encoder, family, vocab, prefix: 'encoder.', sequence: 'source' }
  return {
    family,
    read: spec,
    stacks: [encoder, decoder],
    sequences: [
      {
        ...text(vocab),
        tensors: { ids: 'decoder_input_ids', mask: 'decoder_attention_mask', positions: 'decoder_position_ids' },
        inputs: { ...inputNames, ids: sourceNames.decoderIds },
        start: [spec.startToken],
      },
      {
        ...text(vocab),
        name: 'source',
        inputs: {
          ids: sourceNames.ids,
          slots: sourceNames.slots,
          positions: sourceNames.positions,
          lastSlot: sourceNames.lastSlot,
          total: 'source_total',
          lastIndex: 'source_last_index',
          types: 'source_types',
        },
      },
    ],
    maxPositions: spec.maxPositions,
    ...learned(spec.encoder.positions),
    outputs: ['logits'],
    writer: decoder,
    once: Array.from({ length: decoder.layers }, (_, l) => [`decoder.cross_k.${l}`, `decoder.cross_v.${l}`]).flat(),
    slots: false,
    rotates: false,
    trace: (parameters, options) => traceEncoderDecoder(spec, parameters, options),
  }
}

function ofTwoTowers(spec: TwoTowersSpec): Omit<Architecture, 'kind'> {
  const { family } = spec
  const vocab = (spec.text.input as TokenInput).vocab
  return {
    family,
    read: spec,
    stacks: [
      { ...spec.text, vocab, prefix: 'text.', sequence: 'text', extras: ['text_embeds'] },
      { ...spec.vision, prefix: 'vision.', sequence: 'image', extras: ['image_embeds', 'logits_per_image'] },
    ],
    sequences: [text(vocab), { ...image(spec.vision.input as PixelInput), apart: true }],
    maxPositions: spec.text.maxPositions,
    ...learned(spec.text.positions),
    outputs: ['text_embeds', 'image_embeds', 'logits_per_image'],
    once: [],
    slots: false,
    rotates: false,
    trace: (parameters) => traceTwoTowers(spec, parameters),
  }
}

function ofImagePrefix(spec: ImagePrefixSpec): Omit<Architecture, 'kind'> {
  const { family, language, vision, dropped, imageToken } = spec
  const writer: StackView = { ...language, sequence: 'text', extras: ['image_features'] }
  const pixels = image(vision.input as PixelInput)
  return {
    ...ofDecoder(language),
    family,
    read: spec,
    stacks: [{ ...vision, prefix: 'vision.', sequence: 'image' }, writer],
    sequences: [
      { ...text(language.vocab), image: { token: imageToken, positions: pixels.positions - dropped } },
      { ...pixels, apart: true },
    ],
    writer,
    once: ['image_features'],
    slots: false,
    trace: (parameters, options) => traceImagePrefix(spec, parameters, options),
  }
}

/** Sites of a stack of state spaces. */
const stateSpaceSites = [
  ...['embeddings', 'final_norm', 'final_norm_scale', 'final_norm_normalized', 'logits', 'logits_pre'],
  ...['resid_pre', 'resid_post', 'mixer_in', 'mixer_gate', 'ssm_in', 'ssm_step', 'ssm_out', 'mixer_out'],
]

function ofStateSpace(spec: MambaSpec): Omit<Architecture, 'kind'> {
  const { family, layers, dModel, vocab, inner, head, finalNorm, modules } = spec
  const block = () => {
    throw new ModelError(`The blocks of '${family}' have no attention and no feed-forward network.`)
  }
  const stack: StackView = {
    ...{ family, layers, dModel, vocab, head, finalNorm, modules, block },
    ...{ dMlp: inner, heads: 1, kvHeads: 1, headDim: dModel },
    positions: { kind: 'none' },
    only: stateSpaceSites,
  }
  return {
    family,
    read: spec,
    stacks: [stack],
    sequences: [text(vocab)],
    // A state has no length; this is what such models were trained on.
    maxPositions: 2048,
    outputs: ['logits'],
    writer: stack,
    recomputes: true,
    once: [],
    slots: false,
    rotates: false,
    trace: (parameters, options) => traceMamba(spec, parameters, options),
  }
}

/** How each kind of model is run. */
const kinds: { readonly [K in ModelRecord['kind']]: (spec: Extract<ModelRecord, { kind: K }>['spec']) => Omit<Architecture, 'kind'> } = {
  decoder: ofDecoder,
  encoder: ofEncoder,
  'encoder-decoder': ofEncoderDecoder,
  'two-towers': ofTwoTowers,
  'image-prefix': ofImagePrefix,
  'state-space': ofStateSpace,
}

/** What running a model needs to know of it. */
export function architectureOf(record: ModelRecord): Architecture {
  const row = kinds[record.kind] as (spec: ModelRecord['spec']) => Omit<Architecture, 'kind'>
  return { kind: record.kind, ...row(record.spec) }
}

/** Names of the tensors that a model takes. */
export function tensorNames(a: Architecture): string[] {
  return a.sequences.flatMap((s) => (s.kind === 'pixels' ? [s.pixels] : (Object.values(s.tensors) as string[])))
}
