/** @file The trunk of decoder-only language models: reads a record, traces the graph, marks the sites. */
import {
  add,
  attention,
  cut,
  gather,
  gatherRows,
  input,
  maximum,
  minimum,
  mul,
  reshape,
  slice,
  type Tensor,
  tanh,
  unsqueeze,
} from '../../tensor/index.ts'
import type { AttentionSpec, BlockSpec, DecoderSpec, HeadNorm, Norm, Projection } from '../spec.ts'
import { cacheName, inputNames, type TracedModel, type TraceOptions } from '../traced.ts'
import { type Parameters, Parts } from './parts.ts'
import { learnedIndex, PositionTables } from './positions.ts'

export type { Parameters } from './parts.ts'

/** Traces a decoder-only model. */
export function traceDecoder(spec: DecoderSpec, parameters: Parameters, options: TraceOptions): TracedModel {
  return new DecoderTrunk(spec, parameters, options).trace()
}

class DecoderTrunk {
  private readonly spec: DecoderSpec
  private readonly parameters: Parameters
  private readonly options: TraceOptions
  private readonly parts: Parts
  private readonly tables: PositionTables
  private readonly slots = input(inputNames.slots, 'int64', ['batch', 'pos'])
  private readonly positions = input(inputNames.positions, 'int64', ['batch', 'pos'])
  private readonly lastSlot = input(inputNames.lastSlot, 'int32', ['batch'])
  private readonly total = input(inputNames.total, 'int32', [])
  private readonly lastIndex = input(inputNames.lastIndex, 'int64', ['batch'])
  private readonly caches: { keys: Tensor; values: Tensor }[] = []
  /** Added to the scores of every layer. */
  private readonly bias: Tensor | undefined

  constructor(spec: DecoderSpec, parameters: Parameters, options: TraceOptions) {
    this.spec = spec
    this.parameters = parameters
    this.options = options
    this.parts = new Parts(parameters, options.slots)
    this.tables = new PositionTables(parameters, this.total)
    const { positions } = spec
    if (positions.kind === 'alibi') this.bias = this.tables.alibi(positions, options.cache ? 'total' : 'pos')
  }

  trace(): TracedModel {
    const { spec, parts } = this
    let x = this.embed()
    for (let layer = 0; layer < spec.layers; layer++) x = this.block(x, layer)
    // The final norm and the unembedding are a segment of their own.
    x = cut(x, spec.layers)
    if (this.options.lastOnly) x = unsqueeze(gatherRows(x, this.lastIndex), 1)
    if (spec.finalNorm) x = parts.mark('final_norm', parts.norm('final_norm', '', spec.finalNorm, x))
    const logits = this.unembed(x)
    return { logits, sites: parts.marks.sites, inner: parts.marks.inner, caches: this.caches, lastIndex: this.lastIndex }
  }

  private embed(): Tensor {
    const { spec, parts } = this
    const ids = input(inputNames.ids, 'int64', ['batch', 'pos'])
    const width = spec.narrow?.width ?? spec.dModel
    let x = gather(this.parameters.get(spec.embedding, [spec.vocab, width]), ids)
    if (spec.narrow) x = parts.linear(x, spec.narrow.in, width, spec.dModel)
    if (spec.embeddingScale) x = mul(x, spec.embeddingScale)
    x = cut(parts.mark('embeddings', x), 0)
    if (spec.positions.kind === 'learned') {
      const { weight, count, offset } = spec.positions
      const table = this.parameters.get(weight, [count + offset, spec.dModel])
      x = add(x, parts.mark('pos_embeddings', gather(table, learnedIndex(this.positions, offset))))
    }
    return spec.embeddingNorm ? parts.norm('embeddings_norm', '', spec.embeddingNorm, x) : x
  }

  private unembed(x: Tensor): Tensor {
    const { spec, parts } = this
    const { narrow } = spec
    const read = narrow ? parts.linear(x, narrow.out, spec.dModel, narrow.width) : x
    let logits = parts.mark('logits_pre', parts.linear(read, spec.head, narrow?.width ?? spec.dModel, spec.vocab))
    if (spec.logitScale) logits = mul(logits, spec.logitScale)
    if (spec.logitSoftcap) logits = mul(tanh(mul(logits, 1 / spec.logitSoftcap)), spec.logitSoftcap)
    return parts.mark('logits', logits)
  }

  private block(x: Tensor, layer: number): Tensor {
    const { spec, parts } = this
    const b = spec.block(layer)
    const at = (name: string) => `${name}.${layer}`
    const pre = parts.mark(at('resid_pre'), layer === 0 ? x : cut(x, layer))
    const attnIn = parts.mark(at('attn_in'), b.attnNorm ? parts.norm('attn_in', `.${layer}`, b.attnNorm, pre) : pre)
    const attention = (from: Tensor) => this.attention(from, b.attention, layer)
    const mlp = (from: Tensor) => parts.mlp(parts.mark(at('mlp_in'), from), b.mlp, spec.dModel, spec.dMlp, layer)
    const before = (stream: Tensor) => (b.mlpNorm ? parts.norm('mlp_in', `.${layer}`, b.mlpNorm, stream) : stream)
    if (b.residual === 'parallel') {
      const attnAdds = this.contribution('attn_out', attention(attnIn), b, b.attnPostNorm, layer)
      const mlpAdds = this.contribution('mlp_out', mlp(b.mlpNorm ? before(pre) : attnIn), b, b.mlpPostNorm, layer)
      return parts.mark(at('resid_post'), add(add(pre, attnAdds), mlpAdds))
    }
    const mid = parts.mark(at('resid_mid'), this.sum('attn_out', pre, attention(attnIn), b, b.attnPostNorm, b.attnSumNorm, layer))
    return parts.mark(at('resid_post'), this.sum('mlp_out', mid, mlp(before(mid)), b, b.mlpPostNorm, b.mlpSumNorm, layer))
  }

  /** The residual stream after a module's output was added to it. */
  private sum(
    site: 'attn_out' | 'mlp_out',
    stream: Tensor,
    output: Tensor,
    b: BlockSpec,
    postNorm: Norm | undefined,
    sumNorm: Norm | undefined,
    layer: number,
  ): Tensor {
    if (b.addsInside?.includes(site))
      return this.parts.mark(`${site}.${layer}`, add(stream, this.parts.mark(`${site}_post.${layer}`, output)))
    const added = add(stream, this.contribution(site, output, b, postNorm, layer))
    return sumNorm ? this.parts.norm(`${site}_sum`, `.${layer}`, sumNorm, added) : added
  }

  /** What a module's output adds to the residual stream. */
  private contribution(site: string, output: Tensor, b: BlockSpec, postNorm: Norm | undefined, layer: number): Tensor {
    let x = this.parts.mark(`${site}.${layer}`, output)
    if (postNorm) x = this.parts.norm(`${site}_post`, `.${layer}`, postNorm, x)
    if (b.multiplier) x = mul(x, b.multiplier)
    return this.parts.mark(`${site}_post.${layer}`, x)
  }

  private attention(x: Tensor, a: AttentionSpec, layer: number): Tensor {
    const { spec, options, parts } = this
    const { heads, kvHeads, headDim } = spec
    const at = (name: string) => `${name}.${layer}`
    const [q, k, v] = this.project(x, a.projection)
    // The sites have their heads apart; the fused op wants them side by side. Reshapes cost nothing.
    const flat = (t: Tensor, n: number) => reshape(t, ['batch', 'pos', n * headDim])
    const perHead = (name: string, t: Tensor, n: number, norm?: HeadNorm) => {
      const read = parts.mark(at(name), reshape(t, ['batch', 'pos', n, headDim]))
      const site = a.clip && name !== 'z' ? maximum(minimum(read, a.clip), -a.clip) : read
      return flat(norm ? parts.mark(at(`${name}_norm_out`), parts.headNorm(norm, parts.mark(at(`${name}_norm_in`), site))) : site, n)
    }
    const past = options.cache
      ? {
          keys: input(cacheName('keys', layer), 'float32', ['batch', kvHeads, 'capacity', headDim]),
          values: input(cacheName('values', layer), 'float32', ['batch', kvHeads, 'capacity', headDim]),
        }
      : undefined
    const rotary = a.rotary && { ...this.tables.rotary(a.rotary), positions: this.positions }
    const result = attention(
      {
        q: perHead('q', q, heads, a.qNorm),
        k: perHead('k', k, kvHeads, a.kNorm),
        v: perHead('v', v, kvHeads),
        lastSlot: this.lastSlot,
        total: this.total,
        slots: this.slots,
        ...(rotary ? { rotary } : {}),
        ...(past ? { past } : {}),
        ...(this.bias ? { bias: this.bias } : {}),
      },
      {
        heads,
        kvHeads,
        headDim,
        scale: a.scale,
        interleaved: a.rotary?.interleaved ?? false,
        explicitPositions: options.explicitPositions,
        ...(a.window ? { window: a.window } : {}),
        ...(a.softcap ? { softcap: a.softcap } : {}),
      },
    )
    for (const name of ['attn_scores', 'attn_probs', ...(rotary ? ['q_rot', 'k_rot'] : [])]) parts.marks.inside(at(name), result.z, name)
    if (past) this.caches.push({ keys: result.keys, values: result.values })
    return parts.linear(perHead('z', result.z, heads), a.output, heads * headDim, spec.dModel)
  }

  private project(x: Tensor, p: Projection): [Tensor, Tensor, Tensor] {
    const { dModel, heads, kvHeads, headDim } = this.spec
    const { parts } = this
    const [nq, nk] = [heads * headDim, kvHeads * headDim]
    if (p.kind === 'split') return [parts.linear(x, p.q, dModel, nq), parts.linear(x, p.k, dModel, nk), parts.linear(x, p.v, dModel, nk)]
    const qkv = parts.linear(x, p.qkv, dModel, nq + 2 * nk)
    if (p.order === 'concatenated') return [slice(qkv, 2, 0, nq), slice(qkv, 2, nq, nq + nk), slice(qkv, 2, nq + nk, nq + 2 * nk)]
    const group = heads / kvHeads
    const grouped = reshape(qkv, ['batch', 'pos', kvHeads, group + 2, headDim])
    const part = (from: number, to: number, n: number) => reshape(slice(grouped, 3, from, to), ['batch', 'pos', n])
    return [part(0, group, nq), part(group, group + 1, nk), part(group + 1, group + 2, nk)]
  }
}
