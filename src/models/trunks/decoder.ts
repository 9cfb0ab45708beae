/** @file The trunk of decoder-only language models: reads a record, traces the graph, marks the sites. */
import {
  add,
  attention,
  cut,
  gather,
  gatherRows,
  gelu,
  identity,
  input,
  layerNorm,
  matmul,
  mul,
  relu,
  reshape,
  rmsNorm,
  silu,
  slice,
  slot,
  type Tensor,
  unsqueeze,
} from '../../tensor/index.ts'
import type { Activation, DecoderSpec, Linear, Mlp, Norm, Projection } from '../spec.ts'
import { cacheName, inputNames, SiteMarks, slotName, slotSites, type TracedModel, type TraceOptions } from '../traced.ts'

/** Gives the trunk its parameters. */
export interface Parameters {
  /** A parameter by its checkpoint name; refuses a shape other than the given one. */
  get(name: string, shape: readonly number[]): Tensor
  /** Rotary tables [positions, dim/2]. */
  readonly rotary?: { readonly cos: Tensor; readonly sin: Tensor }
}

const activations: Readonly<Record<Activation, (x: Tensor) => Tensor>> = {
  silu,
  relu,
  gelu: (x) => gelu(x),
  gelu_tanh: (x) => gelu(x, 'tanh'),
}

/** Traces a decoder-only model. */
export function traceDecoder(spec: DecoderSpec, parameters: Parameters, options: TraceOptions): TracedModel {
  return new DecoderTrunk(spec, parameters, options).trace()
}

class DecoderTrunk {
  private readonly marks = new SiteMarks()
  private readonly spec: DecoderSpec
  private readonly parameters: Parameters
  private readonly options: TraceOptions
  private readonly slots = input(inputNames.slots, 'int64', ['batch', 'pos'])
  private readonly positions = input(inputNames.positions, 'int64', ['batch', 'pos'])
  private readonly lastSlot = input(inputNames.lastSlot, 'int32', ['batch'])
  private readonly total = input(inputNames.total, 'int32', [])
  private readonly lastIndex = input(inputNames.lastIndex, 'int64', ['batch'])

  constructor(spec: DecoderSpec, parameters: Parameters, options: TraceOptions) {
    this.spec = spec
    this.parameters = parameters
    this.options = options
  }

  trace(): TracedModel {
    const { spec } = this
    const ids = input(inputNames.ids, 'int64', ['batch', 'pos'])
    let x = cut(this.mark('embeddings', gather(this.parameters.get(spec.embedding, [spec.vocab, spec.dModel]), ids)), 0)
    if (spec.positions.kind === 'learned') {
      const { weight, count } = spec.positions
      x = add(x, this.mark('pos_embeddings', gather(this.parameters.get(weight, [count, spec.dModel]), this.positions)))
    }
    const caches: { keys: Tensor; values: Tensor }[] = []
    for (let layer = 0; layer < spec.layers; layer++) x = this.block(x, layer, caches)
    // The final norm and the unembedding are a segment of their own.
    x = cut(x, spec.layers)
    if (this.options.lastOnly) x = unsqueeze(gatherRows(x, this.lastIndex), 1)
    const final = this.norm('final_norm', '', spec.finalNorm, x)
    const logits = this.mark('logits', this.linear(final, spec.head, spec.dModel, spec.vocab))
    return { logits, sites: this.marks.sites, inner: this.marks.inner, caches, lastIndex: this.lastIndex }
  }

  private block(x: Tensor, layer: number, caches: { keys: Tensor; values: Tensor }[]): Tensor {
    const block = this.spec.block(layer)
    const at = (name: string) => `${name}.${layer}`
    const pre = this.mark(at('resid_pre'), layer === 0 ? x : cut(x, layer))
    const attnIn = this.norm('attn_in', `.${layer}`, block.attnNorm, pre)
    const attnOut = this.mark(at('attn_out'), this.attention(attnIn, block.projection, block.output, layer, caches))
    const mid = this.mark(at('resid_mid'), add(pre, this.mark(at('attn_out_post'), attnOut)))
    const mlpIn = this.norm('mlp_in', `.${layer}`, block.mlpNorm, mid)
    const mlpOut = this.mark(at('mlp_out'), this.mlp(mlpIn, block.mlp, layer))
    return this.mark(at('resid_post'), add(mid, this.mark(at('mlp_out_post'), mlpOut)))
  }

  private attention(x: Tensor, projection: Projection, output: Linear, layer: number, caches: { keys: Tensor; values: Tensor }[]): Tensor {
    const { spec, options } = this
    const { heads, kvHeads, headDim } = spec
    const at = (name: string) => `${name}.${layer}`
    // The site has its heads apart; the fused op wants them side by side. Reshapes cost nothing.
    const perHead = (name: string, t: Tensor, n: number) => {
      const site = this.mark(at(name), reshape(t, ['batch', 'pos', n, headDim]))
      return reshape(site, ['batch', 'pos', n * headDim])
    }
    const [q, k, v] = this.project(x, projection)
    const { positions } = spec
    const past = options.cache
      ? {
          keys: input(cacheName('keys', layer), 'float32', ['batch', kvHeads, 'capacity', headDim]),
          values: input(cacheName('values', layer), 'float32', ['batch', kvHeads, 'capacity', headDim]),
        }
      : undefined
    const rotary =
      positions.kind === 'rotary' && this.parameters.rotary ? { ...this.parameters.rotary, positions: this.positions } : undefined
    const result = attention(
      {
        q: perHead('q', q, heads),
        k: perHead('k', k, kvHeads),
        v: perHead('v', v, kvHeads),
        lastSlot: this.lastSlot,
        total: this.total,
        slots: this.slots,
        ...(rotary ? { rotary } : {}),
        ...(past ? { past } : {}),
      },
      {
        heads,
        kvHeads,
        headDim,
        scale: 1 / Math.sqrt(headDim),
        interleaved: positions.kind === 'rotary' && positions.interleaved,
        explicitPositions: options.explicitPositions,
      },
    )
    for (const name of ['attn_scores', 'attn_probs', ...(rotary ? ['q_rot', 'k_rot'] : [])]) this.marks.inside(at(name), result.z, name)
    if (past) caches.push({ keys: result.keys, values: result.values })
    return this.linear(perHead('z', result.z, heads), output, heads * headDim, spec.dModel)
  }

  private project(x: Tensor, p: Projection): [Tensor, Tensor, Tensor] {
    const { dModel, heads, kvHeads, headDim } = this.spec
    const [nq, nk] = [heads * headDim, kvHeads * headDim]
    if (p.kind === 'split') return [this.linear(x, p.q, dModel, nq), this.linear(x, p.k, dModel, nk), this.linear(x, p.v, dModel, nk)]
    const qkv = this.linear(x, p.qkv, dModel, nq + 2 * nk)
    return [slice(qkv, 2, 0, nq), slice(qkv, 2, nq, nq + nk), slice(qkv, 2, nq + nk, nq + 2 * nk)]
  }

  private mlp(x: Tensor, mlp: Mlp, layer: number): Tensor {
    const { dModel, dMlp } = this.spec
    const at = (name: string) => `${name}.${layer}`
    const act = activations[mlp.activation]
    if (mlp.kind === 'plain') {
      const pre = this.mark(at('mlp_pre'), this.linear(x, mlp.up, dModel, dMlp))
      return this.linear(this.mark(at('mlp_act'), act(pre)), mlp.down, dMlp, dModel)
    }
    const gate = this.mark(at('mlp_pre'), this.linear(x, mlp.gate, dModel, dMlp))
    const up = this.mark(at('mlp_pre_linear'), this.linear(x, mlp.up, dModel, dMlp))
    return this.linear(this.mark(at('mlp_act'), mul(act(gate), up)), mlp.down, dMlp, dModel)
  }

  private norm(site: string, suffix: string, norm: Norm, x: Tensor): Tensor {
    const { dModel } = this.spec
    const gain = this.parameters.get(norm.weight, [dModel])
    const bias = norm.bias ? this.parameters.get(norm.bias, [dModel]) : undefined
    const y = norm.kind === 'rms' ? rmsNorm(x, gain, norm.eps) : layerNorm(x, gain, bias, norm.eps)
    this.marks.inside(`${site}_scale${suffix}`, y, 'scale')
    this.marks.inside(`${site}_normalized${suffix}`, y, 'normalized')
    return this.mark(`${site}${suffix}`, y)
  }

  private linear(x: Tensor, l: Linear, from: number, to: number): Tensor {
    const transB = l.layout === 'out,in'
    const y = matmul(x, this.parameters.get(l.weight, transB ? [to, from] : [from, to]), { transB })
    return l.bias ? add(y, this.parameters.get(l.bias, [to])) : y
  }

  private mark(site: string, x: Tensor): Tensor {
    const open = this.options.slots && slotSites.includes(site.split('.')[0] as string)
    const marked = identity(open ? slot(x, slotName(site)) : x)
    this.marks.sites.set(site, marked)
    return marked
  }
}
