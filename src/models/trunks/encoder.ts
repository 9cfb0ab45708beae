/** @file The trunk of encoders: every position sees every other one, or those near it. */
import {
  abs,
  attention,
  cast,
  crossAttention,
  cut,
  input,
  iota,
  less,
  reshape,
  rotary,
  scalar,
  sub,
  type Tensor,
  unsqueeze,
  where,
} from '../../tensor/index.ts'
import type { EncoderSpec, PixelInput, TokenInput } from '../encoder-spec.ts'
import type { Rotary, Stack } from '../spec.ts'
import { cacheName, inputNames, type TracedModel } from '../traced.ts'
import { type Attend, Blocks } from './blocks.ts'
import { embedPixels, embedTokens, filled, imagePositions } from './inputs.ts'
import { type Parameters, Parts } from './parts.ts'
import { PositionTables } from './positions.ts'

/** Name of the input with an image: float32 [batch, channel, row, column]. */
export const pixelsName = 'pixel_values'

/** Attention over all positions, or those that a mask [batch, key] shows. */
export const everywhere =
  (parts: Parts, heads: number, options: { mask?: Tensor; bias?: Tensor } = {}): Attend =>
  (qkv, a, site) => {
    const z = crossAttention({ ...qkv, ...options }, { heads, scale: a.scale })
    for (const name of ['attn_scores', 'attn_probs']) parts.inside(site(name), z, name)
    return z
  }

/** Attention over the positions up to one's own; with `caches`, also over those of earlier steps, to whose keys and values it adds. */
export const causal = (
  parts: Parts,
  stack: Stack,
  slots: Tensor,
  { bias, caches }: { bias?: Tensor; caches?: { keys: Tensor; values: Tensor }[] } = {},
): Attend => {
  const { heads, kvHeads, headDim } = stack
  const lastSlot = input(inputNames.lastSlot, 'int32', ['batch'])
  const total = input(inputNames.total, 'int32', [])
  return (qkv, a, site, layer) => {
    const attrs = { heads, kvHeads, headDim, scale: a.scale, interleaved: false, explicitPositions: false }
    const cache = (part: 'keys' | 'values') => input(cacheName(part, layer), 'float32', ['batch', kvHeads, 'capacity', headDim])
    const past = caches ? { past: { keys: cache('keys'), values: cache('values') } } : {}
    const { z, keys, values } = attention({ ...qkv, lastSlot, total, slots, ...(bias ? { bias } : {}), ...past }, attrs)
    for (const name of ['attn_scores', 'attn_probs']) parts.inside(site(name), z, name)
    caches?.push({ keys, values })
    return z
  }
}

/** Attention of an encoder of tokens: everywhere, or within a window on both sides, after rotation where a layer rotates. */
const around = (spec: EncoderSpec, parameters: Parameters, parts: Parts, positions: Tensor, mask: Tensor): Attend => {
  const tables = new PositionTables(parameters, input(inputNames.total, 'int32', []))
  const places = iota(positions, 1)
  const distance = abs(cast(sub(unsqueeze(places, 0), unsqueeze(places, 1)), 'float32'))
  const near = (window: number) => unsqueeze(unsqueeze(where(less(distance, window), scalar(0), Number.MIN_SAFE_INTEGER), 0), 0)
  return (qkv, a, site, layer) => {
    const bias = a.window ? { bias: near(a.window) } : {}
    const { rotary: r } = a
    const turn = (name: 'q' | 'k') => {
      const turned = rotary(qkv[name], positions, tables.rotary(r as Rotary), { heads: spec.heads, interleaved: r?.interleaved ?? false })
      const apart = parts.mark(site(`${name}_rot`), reshape(turned, ['batch', 'pos', spec.heads, spec.headDim]))
      return reshape(apart, turned.shape)
    }
    const heads = r ? { q: turn('q'), k: turn('k'), v: qkv.v } : qkv
    return everywhere(parts, spec.heads, { mask, ...bias })(heads, a, site, layer)
  }
}

/** Traces an encoder; inputs are those of {@link inputNames} for tokens, or {@link pixelsName}. */
export function traceEncoder(spec: EncoderSpec, parameters: Parameters): TracedModel {
  const parts = new Parts(parameters)
  const logits = encode(spec, parameters, parts, { rows: 'batch', from: 0 })
  return { logits, sites: parts.marks.sites, inner: parts.marks.inner, caches: [] }
}

/** The last states of an encoder. `rows` names the axis of its rows, `from` is its first segment. */
export function encode(spec: EncoderSpec, parameters: Parameters, parts: Parts, { rows, from }: { rows: string; from: number }): Tensor {
  const [entering, attend] = spec.input.kind === 'tokens' ? tokens(spec, parameters, parts) : pixels(spec, parameters, parts, rows)
  const blocks = new Blocks({
    parts,
    parameters,
    stack: spec,
    axes: [rows, spec.input.kind === 'tokens' ? 'pos' : imagePositions(spec.input)],
    attend,
    segmentsBefore: from,
  })
  let x = cut(entering, from)
  if (spec.inputNorm) x = parts.norm('embeddings_norm', '', spec.inputNorm, x)
  x = cut(blocks.all(x), from + spec.layers)
  if (spec.finalNorm) x = parts.mark('final_norm', parts.norm('final_norm', '', spec.finalNorm, x))
  return parts.mark('last_hidden_state', x)
}

function tokens(spec: EncoderSpec, parameters: Parameters, parts: Parts): [Tensor, Attend] {
  const matrix = (name: string) => input(name, 'int64', ['batch', 'pos'])
  const [ids, positions] = [matrix(inputNames.ids), matrix(inputNames.positions)]
  const t = spec.input as TokenInput
  const types = t.types ? matrix(inputNames.types) : undefined
  const x = embedTokens(spec, t, { ids, positions, ...(types ? { types } : {}) }, parameters, parts)
  if (spec.causal) return [x, causal(parts, spec, matrix(inputNames.slots))]
  return [x, around(spec, parameters, parts, positions, filled(ids, input(inputNames.lastSlot, 'int32', ['batch'])))]
}

function pixels(spec: EncoderSpec, parameters: Parameters, parts: Parts, rows: string): [Tensor, Attend] {
  const p = spec.input as PixelInput
  const image = input(pixelsName, 'float32', [rows, p.channels, p.image, p.image])
  return [embedPixels(spec, p, image, parameters, parts), everywhere(parts, spec.heads)]
}
