/** @file Models of a vision tower and a stack of text: compared with each other (CLIP), or the image as tokens of a language model (LLaVA). */
import {
  add,
  argmax,
  cast,
  cumsum,
  cut,
  div,
  equal,
  exp,
  gather,
  gatherRows,
  identity,
  input,
  matmul,
  maximum,
  mul,
  reshape,
  scalar,
  slice,
  sqrt,
  squeeze,
  sub,
  sum,
  type Tensor,
  unsqueeze,
  where,
} from '../../tensor/index.ts'
import type { ImagePrefixSpec, TwoTowersSpec } from '../encoder-spec.ts'
import { inputNames, SiteMarks, type TracedModel, type TraceOptions } from '../traced.ts'
import { traceDecoder } from './decoder.ts'
import { encode } from './encoder.ts'
import { filled } from './inputs.ts'
import { activations, type Parameters, Parts } from './parts.ts'

/** Parameters of a part, whose names begin with a prefix in the whole. */
const under = (parameters: Parameters, prefix: string): Parameters => ({
  ...parameters,
  get: (name, shape) => parameters.get(prefix + name, shape),
})

/** Traces both towers, their projections into the common space, and the products of texts and images there. */
export function traceTwoTowers(spec: TwoTowersSpec, parameters: Parameters): TracedModel {
  const marks = new SiteMarks()
  const top = new Parts(parameters, { marks })
  const tower = (which: 'text' | 'vision', rows: string, from: number) => {
    const own = under(parameters, spec.prefixes[which])
    return encode(spec[which], own, new Parts(own, { prefix: `${which}.`, marks }), { rows, from })
  }
  const vision = tower('vision', 'images', 0)
  const text = tower('text', 'batch', spec.vision.layers + 1)
  const unit = (x: Tensor) => div(x, sqrt(sum(mul(x, x), [-1], true)))
  const first = squeeze(slice(vision, 1, 0, 1), 1)
  const image = top.norm('image_pooled', '', spec.visionNorm, cut(first, spec.vision.layers + spec.text.layers + 2))
  const imageEmbeds = top.mark('image_embeds', unit(top.linear(image, spec.visionProjection, spec.vision.dModel, spec.width)))
  const pooled = gatherRows(text, pooledPosition(spec.pool))
  const textEmbeds = top.mark('text_embeds', unit(top.linear(pooled, spec.textProjection, spec.text.dModel, spec.width)))
  const scaled = mul(matmul(imageEmbeds, textEmbeds, { transB: true }), exp(parameters.get(spec.logitScale, [])))
  return { logits: top.mark('logits_per_image', scaled), sites: marks.sites, inner: marks.inner, caches: [] }
}

/** Index of the position that stands for a text: the first token that ends it, or the one of the largest id. */
function pooledPosition(pool: TwoTowersSpec['pool']): Tensor {
  const ids = input(inputNames.ids, 'int64', ['batch', 'pos'])
  const seen = cast(filled(ids, input(inputNames.lastSlot, 'int32', ['batch'])), 'float32')
  const score = pool === 'largest id' ? add(cast(ids, 'float32'), 1) : cast(equal(ids, scalar(pool.token, 'int64')), 'float32')
  return argmax(mul(score, seen), 1)
}

/** Traces the vision tower, the projector, and the language model in which an image's features take the places of its tokens. */
export function traceImagePrefix(spec: ImagePrefixSpec, parameters: Parameters, options: TraceOptions): TracedModel {
  const { vision, language, prefixes } = spec
  const marks = new SiteMarks()
  const own = under(parameters, prefixes.vision)
  encode(vision, own, new Parts(own, { prefix: 'vision.', marks }), { rows: 'images', from: 0 })
  const seen = marks.sites.get(spec.layer === 0 ? 'vision.resid_pre.0' : `vision.resid_post.${spec.layer - 1}`) as Tensor
  const patches = slice(seen, 1, spec.dropped, seen.shape[1] as number)
  const inner = new Parts(under(parameters, prefixes.projector), { marks })
  const { first, second, activation } = spec.projector
  const hidden = activations[activation](inner.linear(cut(patches, vision.layers + 1), first, vision.dModel, language.dModel))
  const features = identity(inner.linear(hidden, second, language.dModel, language.dModel))
  marks.sites.set('image_features', features)
  return traceDecoder(language, under(parameters, prefixes.language), options, {
    marks,
    from: vision.layers + 2,
    embed: (x, ids) => imageTokens(x, ids, features, spec.imageToken),
  })
}

/** Embeddings in which the tokens of images are their features, in order over all rows. */
function imageTokens(x: Tensor, ids: Tensor, features: Tensor, token: number): Tensor {
  const isImage = equal(ids, scalar(token, 'int64'))
  const count = cast(isImage, 'int64')
  const before = cumsum(sum(count, [1], true), 0, { exclusive: true })
  // Elsewhere the index is of no use, but must exist.
  const index = maximum(sub(add(cumsum(count, 1), before), scalar(1, 'int64')), scalar(0, 'int64'))
  const rows = reshape(features, [-1, features.shape.at(-1) as number])
  return where(unsqueeze(isImage, 2), gather(rows, index), x)
}
