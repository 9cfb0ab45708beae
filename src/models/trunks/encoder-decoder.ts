/** @file The trunk of encoder–decoders: sites of the two stacks have the prefixes `encoder.` and `decoder.`. */
import { add, cut, input, iota, mul, reshape, type Tensor } from '../../tensor/index.ts'
import type { EncoderDecoderSpec, StackSpec, TokenInput } from '../encoder-spec.ts'
import { inputNames, SiteMarks } from '../traced.ts'
import { Blocks } from './blocks.ts'
import { causal, everywhere } from './encoder.ts'
import { distanceBias, embedTokens, filled } from './inputs.ts'
import { type Parameters, Parts } from './parts.ts'

/** Inputs besides those of {@link inputNames}, which are the decoder's but for the ids. */
export const sourceNames = {
  /** Ids of the encoder's tokens, int64 [batch, source] */
  ids: inputNames.ids,
  /** Their slots 0, 1, 2 …, int64 [batch, source] */
  slots: 'source_slots',
  /** Index of the last valid slot of each row, int32 [batch] */
  lastSlot: 'source_last_slot',
  /** Ids of the decoder's tokens, int64 [batch, pos] */
  decoderIds: 'decoder_input_ids',
} as const

/** A traced encoder–decoder. */
export interface TracedEncoderDecoder {
  /** Output of the encoder [batch, source, d_model]. */
  readonly encoded: Tensor
  /** [batch, pos, d_vocab] */
  readonly logits: Tensor
  readonly sites: SiteMarks['sites']
  readonly inner: SiteMarks['inner']
}

/** Traces both stacks as one graph, without a cache. */
export function traceEncoderDecoder(spec: EncoderDecoderSpec, parameters: Parameters): TracedEncoderDecoder {
  const marks = new SiteMarks()
  const source = (name: string) => input(name, 'int64', ['batch', 'source'])
  const target = (name: string) => input(name, 'int64', ['batch', 'pos'])
  const stack = (which: 'encoder' | 'decoder') => ({ spec: spec[which], parts: new Parts(parameters, { prefix: `${which}.`, marks }) })

  const encoder = stack('encoder')
  const [ids, sourceSlots] = [source(sourceNames.ids), source(sourceNames.slots)]
  const mask = filled(sourceSlots, input(sourceNames.lastSlot, 'int32', ['batch']))
  const encoderBias = biasOf(encoder.spec, sourceSlots, parameters, false)
  const encoded = run(encoder.spec, encoder.parts, parameters, { ids, slots: sourceSlots, from: 0 }, (parts) => ({
    axes: ['batch', 'source'],
    attend: everywhere(parts, encoder.spec.heads, { mask, ...(encoderBias ? { bias: encoderBias } : {}) }),
  }))

  const decoder = stack('decoder')
  const slots = target(inputNames.slots)
  const bias = biasOf(decoder.spec, slots, parameters, true)
  const before = encoder.spec.layers + 1
  const x = run(decoder.spec, decoder.parts, parameters, { ids: target(sourceNames.decoderIds), slots, from: before }, (parts) => ({
    axes: ['batch', 'pos'],
    attend: causal(parts, decoder.spec, slots, bias ? { bias } : {}),
    cross: { source: encoded, axes: ['batch', 'source'], attend: everywhere(parts, decoder.spec.heads, { mask }) },
    segmentsBefore: before,
  }))
  const top = new Parts(parameters, { marks })
  const read = cut(spec.headScale ? mul(x, spec.headScale) : x, before + decoder.spec.layers + 1)
  const raw = top.linear(read, spec.head, spec.dModel, spec.vocab)
  const { headBias } = spec
  const logits = top.mark('logits', headBias ? add(raw, reshape(parameters.get(headBias.weight, headBias.shape), [spec.vocab])) : raw)
  return { encoded, logits, sites: marks.sites, inner: marks.inner }
}

type StackContext = Omit<ConstructorParameters<typeof Blocks>[0], 'parts' | 'parameters' | 'stack'>

/** A stack from its tokens to its last norm. */
function run(
  spec: StackSpec & { readonly input: TokenInput },
  parts: Parts,
  parameters: Parameters,
  tokens: { readonly ids: Tensor; readonly slots: Tensor; readonly from: number },
  context: (parts: Parts) => StackContext,
): Tensor {
  let x = cut(embedTokens(spec, spec.input, tokens.ids, tokens.slots, parameters, parts), tokens.from)
  if (spec.inputNorm) x = parts.norm('embeddings_norm', '', spec.inputNorm, x)
  x = cut(new Blocks({ parts, parameters, stack: spec, ...context(parts) }).all(x), tokens.from + spec.layers)
  return spec.finalNorm ? parts.mark('final_norm', parts.norm('final_norm', '', spec.finalNorm, x)) : x
}

function biasOf(spec: StackSpec, slots: Tensor, parameters: Parameters, backwards: boolean): Tensor | undefined {
  if (spec.positions.kind !== 'distance') return undefined
  return distanceBias(spec.positions.bias, spec.heads, slots, iota(slots, 1), parameters, backwards)
}
