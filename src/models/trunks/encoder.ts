/** @file The trunk of encoders: every position sees every other one. */
import { crossAttention, cut, input, type Tensor } from '../../tensor/index.ts'
import type { EncoderSpec } from '../encoder-spec.ts'
import { inputNames, type SiteMarks } from '../traced.ts'
import { type Attend, Blocks } from './blocks.ts'
import { embedPixels, embedTokens, filled, imagePositions } from './inputs.ts'
import { type Parameters, Parts } from './parts.ts'

/** Name of the input with an image: float32 [batch, channel, row, column]. */
export const pixelsName = 'pixel_values'

/** A traced encoder. */
export interface TracedEncoder {
  /** [batch, pos, d_model] */
  readonly output: Tensor
  readonly sites: SiteMarks['sites']
  readonly inner: SiteMarks['inner']
}

/** Attention over all positions, or those that a mask [batch, key] shows. */
export const everywhere =
  (parts: Parts, heads: number, options: { mask?: Tensor; bias?: Tensor } = {}): Attend =>
  (qkv, a, site) => {
    const z = crossAttention({ ...qkv, ...options }, { heads, scale: a.scale })
    for (const name of ['attn_scores', 'attn_probs']) parts.inside(site(name), z, name)
    return z
  }

/** Traces an encoder; inputs are those of {@link inputNames} for tokens, or {@link pixelsName}. */
export function traceEncoder(spec: EncoderSpec, parameters: Parameters, options: { readonly slots?: boolean } = {}): TracedEncoder {
  const parts = new Parts(parameters, { slots: options.slots ?? false })
  const [entering, mask] = spec.input.kind === 'tokens' ? tokens(spec, parameters, parts) : [pixels(spec, parameters, parts)]
  const blocks = new Blocks({
    parts,
    parameters,
    stack: spec,
    axes: ['batch', spec.input.kind === 'tokens' ? 'pos' : imagePositions(spec.input)],
    attend: everywhere(parts, spec.heads, mask ? { mask } : {}),
  })
  let x = cut(entering, 0)
  if (spec.inputNorm) x = parts.norm('embeddings_norm', '', spec.inputNorm, x)
  x = cut(blocks.all(x), spec.layers)
  if (spec.finalNorm) x = parts.mark('final_norm', parts.norm('final_norm', '', spec.finalNorm, x))
  const output = parts.mark('last_hidden_state', x)
  return { output, sites: parts.marks.sites, inner: parts.marks.inner }
}

function tokens(spec: EncoderSpec, parameters: Parameters, parts: Parts): [Tensor, Tensor] {
  const matrix = (name: string) => input(name, 'int64', ['batch', 'pos'])
  const ids = matrix(inputNames.ids)
  const x = embedTokens(spec, spec.input as EncoderSpec['input'] & { kind: 'tokens' }, ids, matrix(inputNames.positions), parameters, parts)
  return [x, filled(ids, input(inputNames.lastSlot, 'int32', ['batch']))]
}

function pixels(spec: EncoderSpec, parameters: Parameters, parts: Parts): Tensor {
  const p = spec.input as EncoderSpec['input'] & { kind: 'pixels' }
  return embedPixels(spec, p, input(pixelsName, 'float32', ['batch', p.channels, p.image, p.image]), parameters, parts)
}
