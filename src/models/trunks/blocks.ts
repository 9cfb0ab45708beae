/** @file Blocks of every trunk: norms, attention, feed-forward network and the residual stream between them, as their record says. */
import { add, cut, type Dim, maximum, minimum, mul, reshape, slice, type Tensor } from '../../tensor/index.ts'
import type { AttentionSpec, BlockSpec, HeadNorm, Norm, Projection, Stack } from '../spec.ts'
import type { Parameters, Parts } from './parts.ts'

/** Queries, keys and values, heads side by side: [batch, pos, head·d_head]. */
export interface Heads {
  readonly q: Tensor
  readonly k: Tensor
  readonly v: Tensor
}

/** How a trunk mixes values: z [batch, pos, head·d_head]. It names what is inside by `site`, given names like `attn_probs`. */
export type Attend = (heads: Heads, a: AttentionSpec, site: (name: string) => string, layer: number) => Tensor

/** What the blocks of a stack need of their trunk. */
export interface BlockContext {
  readonly parts: Parts
  readonly parameters: Parameters
  readonly stack: Stack
  /** Names of the axes of the stream. */
  readonly axes: readonly [Dim, Dim]
  readonly attend: Attend
  /** Attention to another stack, whose output is `source`. */
  readonly cross?: { readonly source: Tensor; readonly axes: readonly [Dim, Dim]; readonly attend: Attend }
  /** Segments that came before the first block. */
  readonly segmentsBefore?: number
}

type Site = 'attn_out' | 'mlp_out'

/** Traces the blocks of one stack. */
export class Blocks {
  private readonly c: BlockContext

  constructor(context: BlockContext) {
    this.c = context
  }

  /** The residual stream after all blocks. */
  all(x: Tensor): Tensor {
    let stream = x
    for (let layer = 0; layer < this.c.stack.layers; layer++) stream = this.block(stream, layer)
    return stream
  }

  private block(x: Tensor, layer: number): Tensor {
    const { parts, stack, segmentsBefore = 0 } = this.c
    const b = stack.block(layer)
    const at = (name: string) => `${name}.${layer}`
    const pre = parts.mark(at('resid_pre'), layer === 0 ? x : cut(x, segmentsBefore + layer))
    const attnIn = parts.mark(at('attn_in'), b.attnNorm ? parts.norm('attn_in', `.${layer}`, b.attnNorm, pre) : pre)
    const { mlp: network } = b
    if (network.kind === 'none')
      return parts.mark(at('resid_post'), this.sum('attn_out', pre, this.attention(attnIn, b.attention, layer), b, b.attnSumNorm, layer))
    const mlp = (from: Tensor) => parts.mlp(parts.mark(at('mlp_in'), from), network, stack.dModel, stack.dMlp, layer)
    const before = (stream: Tensor) => (b.mlpNorm ? parts.norm('mlp_in', `.${layer}`, b.mlpNorm, stream) : stream)
    if (b.residual === 'parallel') {
      const attnAdds = this.contribution('attn_out', this.attention(attnIn, b.attention, layer), b, layer)
      const mlpAdds = this.contribution('mlp_out', mlp(b.mlpNorm ? before(pre) : attnIn), b, layer)
      return parts.mark(at('resid_post'), add(add(pre, attnAdds), mlpAdds))
    }
    const mid = parts.mark(at('resid_mid'), this.sum('attn_out', pre, this.attention(attnIn, b.attention, layer), b, b.attnSumNorm, layer))
    const crossed = this.crossed(mid, b, layer)
    return parts.mark(at('resid_post'), this.sum('mlp_out', crossed, mlp(before(crossed)), b, b.mlpSumNorm, layer))
  }

  /** The stream after attention to another stack was added. */
  private crossed(stream: Tensor, b: BlockSpec, layer: number): Tensor {
    const { parts, cross } = this.c
    if (!b.cross || !cross) return stream
    const at = (name: string) => `${name}.${layer}`
    const { norm, sumNorm } = b.cross
    const normed = (name: string, n: Norm | undefined, x: Tensor) => (n ? parts.norm(name, `.${layer}`, n, x) : x)
    const read = parts.mark(at('cross_attn_in'), normed('cross_attn_in', norm, stream))
    const out = this.mix('cross_', read, cross.source, b.cross.attention, cross.axes, cross.attend, layer)
    const sum = add(stream, parts.mark(at('cross_attn_out'), out))
    return parts.mark(at('resid_mid_cross'), normed('cross_attn_sum', sumNorm, sum))
  }

  /** The residual stream after a module's output was added to it. */
  private sum(site: Site, stream: Tensor, output: Tensor, b: BlockSpec, sumNorm: Norm | undefined, layer: number): Tensor {
    const { parts } = this.c
    const normed = (x: Tensor) => (sumNorm ? parts.norm(`${site}_sum`, `.${layer}`, sumNorm, x) : x)
    if (!b.addsInside?.includes(site)) return normed(add(stream, this.contribution(site, output, b, layer)))
    return parts.mark(`${site}.${layer}`, normed(add(stream, parts.mark(`${site}_post.${layer}`, output))))
  }

  /** What a module's output adds to the residual stream. */
  private contribution(site: Site, output: Tensor, b: BlockSpec, layer: number): Tensor {
    const { parts, parameters, stack } = this.c
    const [postNorm, gain] = site === 'attn_out' ? [b.attnPostNorm, b.attnGain] : [b.mlpPostNorm, b.mlpGain]
    let x = parts.mark(`${site}.${layer}`, output)
    if (postNorm) x = parts.norm(`${site}_post`, `.${layer}`, postNorm, x)
    if (gain) x = mul(x, parameters.get(gain, [stack.dModel]))
    if (b.multiplier) x = mul(x, b.multiplier)
    return parts.mark(`${site}_post.${layer}`, x)
  }

  private attention(x: Tensor, a: AttentionSpec, layer: number): Tensor {
    return this.mix('', x, x, a, this.c.axes, this.c.attend, layer)
  }

  /** Attention of `x` to `source`, through the output projection; `kind` begins the names of its sites. */
  private mix(
    kind: '' | 'cross_',
    x: Tensor,
    source: Tensor,
    a: AttentionSpec,
    sourceAxes: readonly [Dim, Dim],
    attend: Attend,
    layer: number,
  ): Tensor {
    const { parts, stack, axes } = this.c
    const { heads, kvHeads, headDim, dModel } = stack
    const site = (name: string) => `${kind}${name}.${layer}`
    // The sites have their heads apart; the fused ops want them side by side. Reshapes cost nothing.
    const perHead = (name: string, t: Tensor, n: number, [batch, pos]: readonly [Dim, Dim], norm?: HeadNorm) => {
      const read = parts.mark(site(name), reshape(t, [batch, pos, n, headDim]))
      const clipped = a.clip && name !== 'z' ? maximum(minimum(read, a.clip), -a.clip) : read
      const normed = norm
        ? parts.mark(site(`${name}_norm_out`), parts.headNorm(norm, parts.mark(site(`${name}_norm_in`), clipped)))
        : clipped
      return reshape(normed, [batch, pos, n * headDim])
    }
    const [q, k, v] = this.project(x, source, a.projection)
    const z = attend(
      {
        q: perHead('q', q, heads, axes, a.qNorm),
        k: perHead('k', k, kvHeads, sourceAxes, a.kNorm),
        v: perHead('v', v, kvHeads, sourceAxes),
      },
      a,
      site,
      layer,
    )
    return parts.linear(perHead('z', z, heads, axes), a.output, heads * headDim, dModel)
  }

  private project(x: Tensor, source: Tensor, p: Projection): [Tensor, Tensor, Tensor] {
    const { parts, stack, axes } = this.c
    const { dModel, heads, kvHeads, headDim } = stack
    const [nq, nk] = [heads * headDim, kvHeads * headDim]
    if (p.kind === 'split')
      return [parts.linear(x, p.q, dModel, nq), parts.linear(source, p.k, dModel, nk), parts.linear(source, p.v, dModel, nk)]
    const qkv = parts.linear(x, p.qkv, dModel, nq + 2 * nk)
    if (p.order === 'concatenated') return [slice(qkv, 2, 0, nq), slice(qkv, 2, nq, nq + nk), slice(qkv, 2, nq + nk, nq + 2 * nk)]
    const group = heads / kvHeads
    const grouped = reshape(qkv, [...axes, kvHeads, group + 2, headDim])
    const part = (from: number, to: number, n: number) => reshape(slice(grouped, 3, from, to), [...axes, n])
    return [part(0, group, nq), part(group, group + 1, nk), part(group + 1, group + 2, nk)]
  }
}
