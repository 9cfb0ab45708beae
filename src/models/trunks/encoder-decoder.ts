/** @file The trunk of encoder–decoders: sites of the two stacks have the prefixes `encoder.` and `decoder.`. */
import { add, cast, cut, gatherRows, input, iota, mul, reshape, sliceTo, type Tensor, unsqueeze } from '../../tensor/index.ts'
import type { EncoderDecoderSpec, StackSpec, TokenInput } from '../encoder-spec.ts'
import { inputNames, SiteMarks, type TracedModel, type TraceOptions } from '../traced.ts'
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
  /** Their positions, int64 [batch, source] */
  positions: 'source_positions',
  /** Index of the last valid slot of each row, int32 [batch] */
  lastSlot: 'source_last_slot',
  /** Ids of the decoder's tokens, int64 [batch, pos] */
  decoderIds: 'decoder_input_ids',
} as const

/** Traces both stacks as one graph; a cache is that of the decoder's own keys and values. */
export function traceEncoderDecoder(spec: EncoderDecoderSpec, parameters: Parameters, options: TraceOptions): TracedModel {
  const marks = new SiteMarks()
  const source = (name: string) => input(name, 'int64', ['batch', 'source'])
  const target = (name: string) => input(name, 'int64', ['batch', 'pos'])
  const stack = (which: 'encoder' | 'decoder') => ({ spec: spec[which], parts: new Parts(parameters, { prefix: `${which}.`, marks }) })

  const encoder = stack('encoder')
  const [ids, sourceSlots] = [source(sourceNames.ids), source(sourceNames.slots)]
  const mask = filled(sourceSlots, input(sourceNames.lastSlot, 'int32', ['batch']))
  const encoderBias = biasOf(encoder.spec, sourceSlots, iota(sourceSlots, 1), parameters, false)
  const last = run(encoder.spec, encoder.parts, parameters, { ids, positions: source(sourceNames.positions), from: 0 }, (parts) => ({
    axes: ['batch', 'source'],
    attend: everywhere(parts, encoder.spec.heads, { mask, ...(encoderBias ? { bias: encoderBias } : {}) }),
  }))
  const encoded = encoder.parts.mark('last_hidden_state', last)

  const decoder = stack('decoder')
  const slots = target(inputNames.slots)
  const caches: { keys: Tensor; values: Tensor }[] = []
  const bias = biasOf(decoder.spec, slots, options.cache ? allSlots(parameters) : iota(slots, 1), parameters, true)
  const before = encoder.spec.layers + 1
  const written = { ids: target(sourceNames.decoderIds), positions: target(inputNames.positions), from: before }
  const x = run(decoder.spec, decoder.parts, parameters, written, (parts) => ({
    axes: ['batch', 'pos'],
    attend: causal(parts, decoder.spec, slots, { ...(bias ? { bias } : {}), ...(options.cache ? { caches } : {}) }),
    cross: { source: encoded, axes: ['batch', 'source'], attend: everywhere(parts, decoder.spec.heads, { mask }) },
    segmentsBefore: before,
  }))
  const top = new Parts(parameters, { marks })
  const kept = options.lastOnly ? unsqueeze(gatherRows(x, input(inputNames.lastIndex, 'int64', ['batch'])), 1) : x
  const read = cut(spec.headScale ? mul(kept, spec.headScale) : kept, before + decoder.spec.layers + 1)
  const raw = top.mark('logits_pre', top.linear(read, spec.head, spec.dModel, spec.vocab))
  const { headBias } = spec
  const logits = top.mark('logits', headBias ? add(raw, reshape(parameters.get(headBias.weight, headBias.shape), [spec.vocab])) : raw)
  return { logits, sites: marks.sites, inner: marks.inner, caches }
}

type StackContext = Omit<ConstructorParameters<typeof Blocks>[0], 'parts' | 'parameters' | 'stack'>

/** A stack from its tokens to its last norm. */
function run(
  spec: StackSpec & { readonly input: TokenInput },
  parts: Parts,
  parameters: Parameters,
  tokens: { readonly ids: Tensor; readonly positions: Tensor; readonly from: number },
  context: (parts: Parts) => StackContext,
): Tensor {
  let x = cut(embedTokens(spec, spec.input, tokens, parameters, parts), tokens.from)
  if (spec.inputNorm) x = parts.norm('embeddings_norm', '', spec.inputNorm, x)
  x = cut(new Blocks({ parts, parameters, stack: spec, ...context(parts) }).all(x), tokens.from + spec.layers)
  return spec.finalNorm ? parts.mark('final_norm', parts.norm('final_norm', '', spec.finalNorm, x)) : x
}

function biasOf(spec: StackSpec, slots: Tensor, keys: Tensor, parameters: Parameters, backwards: boolean): Tensor | undefined {
  if (spec.positions.kind !== 'distance') return undefined
  return distanceBias(spec.positions.bias, spec.heads, slots, keys, parameters, backwards)
}

/** Slots of all keys that a cache holds after this step. */
function allSlots({ contextLength, table }: Parameters): Tensor {
  const places = table(
    'all_slots',
    [contextLength],
    Float32Array.from({ length: contextLength }, (_, i) => i),
  )
  return cast(sliceTo(places, 0, input(inputNames.total, 'int32', []), 'total'), 'int64')
}
