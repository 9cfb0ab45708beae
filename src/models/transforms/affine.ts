/** @file An affine map of an activation, z ↦ scale ⊙ z + shift, folded into the weights around its site, where that is exact. */
import { ModelError, ShapeError, UsageError } from '../../base/errors.ts'
import type { BlockSpec, DecoderSpec, Linear, Norm } from '../spec.ts'
import { axisOf, type Draft } from './draft.ts'
import { kind } from './kind.ts'
import { type Matrix, plusProduct } from './matrix.ts'
import { embeddingLayer, finalReader, mlpInputs, projections } from './parts.ts'

/** A map of one site; a scale that is left out is one, a shift zero. */
export interface SiteMap {
  readonly site: string
  readonly scale?: ArrayLike<number>
  readonly shift?: ArrayLike<number>
}

/** Where a map can go: out of a norm, out of a layer, into a layer, or onto the stream by the bias of the layer that wrote it last. */
type Place =
  | { readonly kind: 'norm'; readonly norm: Norm; readonly readers: (s: DecoderSpec) => readonly Linear[] }
  | { readonly kind: 'out'; readonly layer: (s: DecoderSpec) => Linear }
  | { readonly kind: 'in'; readonly layer: (s: DecoderSpec) => Linear }
  | { readonly kind: 'stream'; readonly layer: (s: DecoderSpec) => Linear; readonly factor: number }

const down = (b: BlockSpec): Linear => {
  if (b.mlp.kind === 'plain' || b.mlp.kind === 'gated') return b.mlp.down
  throw new ModelError('A layer with experts, or without a feed-forward network, has no one matrix that writes its output.')
}

const gate = (b: BlockSpec, part: 'gate' | 'up'): Linear => {
  const { mlp } = b
  if (mlp.kind === 'plain' && part === 'gate') return mlp.up
  if (mlp.kind === 'gated' && 'gate' in mlp.gate) return mlp.gate[part]
  throw new ModelError('This site is not the output of one matrix of its own here.')
}

const projection = (b: BlockSpec, part: 'q' | 'k' | 'v'): Linear => {
  const { projection: p } = b.attention
  if (p.kind === 'split' && !b.attention.clip) return p[part]
  throw new ModelError('q, k and v come out of one matrix here (or are clamped), so the site has no matrix of its own.')
}

const normed = (norm: Norm | undefined, readers: (s: DecoderSpec) => readonly Linear[]): Place => {
  if (norm?.weight) return { kind: 'norm', norm, readers }
  throw new ModelError('There is no norm with a gain before this site.')
}

/** What the stream receives from a module is its output as it is. */
const plainly = (b: BlockSpec, which: 'attn' | 'mlp'): void => {
  if (which === 'attn' ? b.attnPostNorm || b.attnSumNorm || b.attnGain : b.mlpPostNorm || b.mlpSumNorm || b.mlpGain)
    throw new ModelError('A norm or a gain stands between the matrix and this site.')
}

/** Places by the name of the site; `l` is the layer. */
const places: Readonly<Record<string, (s: DecoderSpec, l: number) => Place>> = {
  attn_in: (s, l) =>
    normed(s.block(l).attnNorm, (t) => {
      const b = t.block(l)
      const shared = b.residual === 'parallel' && !b.mlpNorm
      return [...projections(b.attention.projection), ...(shared ? mlpInputs(b.mlp) : [])]
    }),
  mlp_in: (s, l) => normed(s.block(l).mlpNorm, (t) => mlpInputs(t.block(l).mlp)),
  final_norm: (s) => normed(s.finalNorm, (t) => [finalReader(t)]),
  q: (_, l) => ({ kind: 'out', layer: (s) => projection(s.block(l), 'q') }),
  k: (_, l) => ({ kind: 'out', layer: (s) => projection(s.block(l), 'k') }),
  v: (_, l) => ({ kind: 'out', layer: (s) => projection(s.block(l), 'v') }),
  z: (_, l) => ({ kind: 'in', layer: (s) => s.block(l).attention.output }),
  attn_out: (_, l) => ({ kind: 'out', layer: (s) => s.block(l).attention.output }),
  attn_out_post: (s, l) => {
    plainly(s.block(l), 'attn')
    return { kind: 'out', layer: (t) => t.block(l).attention.output }
  },
  mlp_pre: (_, l) => ({ kind: 'out', layer: (s) => gate(s.block(l), 'gate') }),
  mlp_pre_linear: (_, l) => ({ kind: 'out', layer: (s) => gate(s.block(l), 'up') }),
  mlp_act: (_, l) => ({ kind: 'in', layer: (s) => down(s.block(l)) }),
  mlp_out: (_, l) => ({ kind: 'out', layer: (s) => down(s.block(l)) }),
  mlp_out_post: (s, l) => {
    plainly(s.block(l), 'mlp')
    return { kind: 'out', layer: (t) => down(t.block(l)) }
  },
  embeddings: (s) => ({ kind: 'stream', layer: embeddingLayer, factor: s.embeddingScale ?? 1 }),
  resid_mid: (s, l) => {
    plainly(s.block(l), 'attn')
    if (s.block(l).residual === 'parallel') throw new ModelError('A parallel block has no such place.')
    return { kind: 'stream', layer: (t) => t.block(l).attention.output, factor: s.block(l).multiplier ?? 1 }
  },
  resid_post: (s, l) => {
    plainly(s.block(l), 'mlp')
    return { kind: 'stream', layer: (t) => down(t.block(l)), factor: s.block(l).multiplier ?? 1 }
  },
}

function placeOf(spec: DecoderSpec, site: string): Place {
  const [name = '', index] = site.split('.')
  const layer = index === undefined ? 0 : Number(index)
  if (name === 'resid_pre' && layer > 0) return placeOf(spec, `resid_post.${layer - 1}`)
  // Between the embeddings and the first block, positions may be added, which a sum does not mind.
  if (name === 'resid_pre' && spec.embeddingNorm) throw new ModelError('A norm stands between the embeddings and this site.')
  if (name === 'resid_pre') return placeOf(spec, 'embeddings')
  const find = places[name]
  if (!find)
    throw new ModelError(
      `A map at '${site}' cannot be folded into weights; it can at ${Object.keys(places).join(', ')}. Keep it as an edit.`,
    )
  if (!Number.isInteger(layer) || layer < 0 || layer >= spec.layers)
    throw new UsageError(`'${site}' names no layer of 0 to ${spec.layers - 1}.`)
  return find(spec, layer)
}

/** Settings of configs that give layers biases. */
const biasSettings = ['mlp_bias', 'attention_bias', 'use_bias', 'bias']

/** Gives layers a bias of zeros, by a setting of the config where the family has one. */
function giveBiases(draft: Draft, site: string, layersOf: (s: DecoderSpec) => readonly Linear[]): void {
  const lacking = () => layersOf(draft.spec).some((l) => l.bias === undefined)
  for (const setting of biasSettings) {
    if (!lacking()) break
    const config = { ...draft.config, [setting]: true }
    const count = (s: DecoderSpec) => layersOf(s).filter((l) => l.bias !== undefined).length
    if (count(draft.specOf(config)) <= count(draft.spec)) continue
    draft.configure({ [setting]: true })
    for (const [name, width] of missingBiases(draft)) draft.putVector(name, new Float32Array(width))
  }
  if (lacking())
    throw new ModelError(
      `A shift at '${site}' needs a bias in the layer that would take it up, and the family '${draft.spec.family}' has none there; keep it as an edit.`,
    )
}

/** Biases that the record names and the checkpoint lacks, with their width. */
function missingBiases(draft: Draft): Map<string, number> {
  const found = new Map<string, number>()
  const visit = (part: unknown): void => {
    if (typeof part !== 'object' || part === null) return
    const l = part as Partial<Linear>
    if (l.weight && l.layout && l.bias && !draft.has(l.bias)) {
      const shape = draft.shape(l.weight)
      found.set(l.bias, shape.at(l.layout === 'out,in' ? -2 : -1) as number)
    }
    for (const inner of Object.values(part)) visit(inner)
  }
  for (let layer = 0; layer < draft.spec.layers; layer++) visit(draft.spec.block(layer))
  return found
}

/** A change of a vector of the checkpoint. */
async function update(draft: Draft, name: string, change: (v: number, i: number) => number): Promise<void> {
  draft.putVector(name, (await draft.vector(name)).map(change))
}

async function fold(draft: Draft, { site, scale, shift }: SiteMap): Promise<void> {
  const place = placeOf(draft.spec, site)
  const shifts = shift !== undefined && Array.from(shift).some((v) => v !== 0)
  const check = (width: number) => {
    for (const part of [scale, shift])
      if (part && part.length !== width)
        throw new ShapeError(`The map at '${site}' has ${part.length} numbers, but the site is ${width} wide.`)
  }
  const factors = scale && Float32Array.from(scale)
  const added = Float32Array.from(shift ?? [])
  if (place.kind === 'norm') {
    const { norm } = place
    const width = (await draft.vector(norm.weight as string)).length
    check(width)
    if (factors) {
      await update(draft, norm.weight as string, (g, i) =>
        norm.plusOne ? (g + 1) * (factors[i] as number) - 1 : g * (factors[i] as number),
      )
      if (norm.bias) await update(draft, norm.bias, (b, i) => b * (factors[i] as number))
    }
    if (!shifts) return
    if (norm.bias) return update(draft, norm.bias, (b, i) => b + (added[i] as number))
    giveBiases(draft, site, place.readers)
    for (const r of place.readers(draft.spec)) await draft.shift(r, await draft.applied(r, added)())
    return
  }
  const widthOf = (l: Linear, side: 'in' | 'out') => draft.shape(l.weight).at(axisOf(l, side) === 'rows' ? -2 : -1) as number
  if (place.kind === 'in') {
    check(widthOf(place.layer(draft.spec), 'in'))
    if (shifts) {
      giveBiases(draft, site, (s) => [place.layer(s)])
      await draft.shift(place.layer(draft.spec), await draft.applied(place.layer(draft.spec), added)())
    }
    if (factors) draft.scale(place.layer(draft.spec), 'in', factors)
    return
  }
  check(widthOf(place.layer(draft.spec), 'out'))
  if (place.kind === 'stream') {
    if (factors?.some((v) => v !== 1))
      throw new ModelError(
        `A map at '${site}' scales the whole residual stream, which no one matrix writes; only its shift could be folded. Keep it as an edit.`,
      )
    if (!shifts) return
    const by = added.map((v) => v / place.factor)
    if (place.layer === embeddingLayer) return shiftRows(draft, place.layer(draft.spec), by)
    giveBiases(draft, site, (s) => [place.layer(s)])
    return draft.shift(place.layer(draft.spec), by)
  }
  if (shifts) giveBiases(draft, site, (s) => [place.layer(s)])
  const l = place.layer(draft.spec)
  if (factors) {
    draft.scale(l, 'out', factors)
    if (l.bias) await update(draft, l.bias, (b, i) => b * (factors[i] as number))
  }
  if (shifts) await draft.shift(l, added)
}

/** Adds a vector to every row of the embedding. */
function shiftRows(draft: Draft, l: Linear, by: Float32Array): void {
  if (l.layout !== 'in,out')
    throw new ModelError('The embeddings are projected before they enter the stream, and that projection has no bias.')
  draft.untie()
  draft.change(l, (m: Matrix) =>
    plusProduct(
      m,
      async () => new Float32Array(m.rows).fill(1),
      async () => by,
    ),
  )
}

export const foldAffine = kind<{ readonly maps: readonly SiteMap[] }>({
  doc: 'Affine maps of activations (and steering vectors, which only shift) move into the weights around their sites, where that is exact.',
  keeps: 'nothing',
  params: ['maps'],
  async apply(draft, { maps }) {
    if (!Array.isArray(maps) || maps.length === 0)
      throw new UsageError('There is no map to fold; give at least one { site, scale, shift }.')
    for (const map of maps) await fold(draft, map)
    return { vectors: await draft.vectorsBefore() }
  },
  undo(draft, { maps }, record) {
    for (const { site, scale, shift } of [...maps].reverse()) {
      const place = placeOf(draft.spec, site)
      if (place.kind === 'norm') continue
      if (place.kind === 'stream') {
        if (place.layer === embeddingLayer && shift)
          shiftRows(
            draft,
            place.layer(draft.spec),
            Float32Array.from(shift, (v) => -v / place.factor),
          )
        continue
      }
      if (!scale) continue
      if (Array.from(scale).includes(0)) throw new ModelError(`The map at '${site}' multiplies a coordinate by 0, which cannot be undone.`)
      const inverse = Float32Array.from(scale, (v) => 1 / v)
      draft.scale(place.layer(draft.spec), place.kind, inverse)
    }
    // What was shifted, and the gains, are vectors.
    draft.putBack(record.vectors)
  },
})
