/** @file The parts that trunks are built of: linear layers, norms, feed-forward networks, marks. */
import {
  add,
  cast,
  concat,
  constant,
  div,
  equal,
  gelu,
  identity,
  layerNorm,
  matmulWeight,
  mul,
  relu,
  reshape,
  rmsNorm,
  sigmoid,
  silu,
  slice,
  slot,
  softmax,
  stackItem,
  sum,
  type Tensor,
  tanh,
  topK,
  unsqueeze,
} from '../../tensor/index.ts'
import type { Activation, DenseMlp, ExpertMlp, HeadNorm, Linear, Norm } from '../spec.ts'
import { SiteMarks, slotName, slotSites } from '../traced.ts'

/** Gives a trunk its parameters. */
export interface Parameters {
  /** A parameter by its checkpoint name; refuses a shape other than the given one. */
  get(name: string, shape: readonly number[]): Tensor
  /** Values computed once and fed at every run. */
  table(name: string, shape: readonly number[], values: Float32Array): Tensor
  /** Positions to make room for. */
  readonly contextLength: number
}

/** Activation functions by name. */
export const activations: Readonly<Record<Activation, (x: Tensor) => Tensor>> = {
  silu,
  relu,
  tanh,
  sigmoid,
  gelu: (x) => gelu(x),
  gelu_tanh: (x) => gelu(x, 'tanh'),
  quick_gelu: (x) => mul(x, sigmoid(mul(x, 1.702))),
  relu_squared: (x) => mul(relu(x), relu(x)),
}

/** Traces parts of a model and marks their sites. */
export class Parts {
  readonly marks: SiteMarks
  private readonly parameters: Parameters
  private readonly slots: boolean
  private readonly prefix: string

  /** @param options.prefix comes before the names of all sites, where a model has several stacks that share `marks`. */
  constructor(parameters: Parameters, options: { slots?: boolean; prefix?: string; marks?: SiteMarks } = {}) {
    this.parameters = parameters
    this.slots = options.slots ?? false
    this.prefix = options.prefix ?? ''
    this.marks = options.marks ?? new SiteMarks()
  }

  /** Gives a value a name, under which it can be read and rewritten. */
  mark(site: string, x: Tensor): Tensor {
    const open = this.slots && slotSites.includes(site.split('.')[0] as string)
    const marked = identity(open ? slot(x, slotName(site)) : x)
    this.marks.sites.set(this.prefix + site, marked)
    return marked
  }

  /** Names a value inside a composite, which appears when the composite is written out. */
  inside(site: string, of: Tensor, name: string): void {
    this.marks.inside(this.prefix + site, of, name)
  }

  /** x·W + b */
  linear(x: Tensor, l: Linear, from: number, to: number): Tensor {
    const transB = l.layout === 'out,in'
    const y = matmulWeight(x, this.matrix(l, transB ? [to, from] : [from, to]), transB)
    return l.bias ? add(y, this.parameters.get(l.bias, [to])) : y
  }

  private matrix(l: Linear, shape: readonly number[]): Tensor {
    if (!l.item) return this.parameters.get(l.weight, shape)
    return stackItem(this.parameters.get(l.weight, [l.item.of, ...shape]), l.item.at)
  }

  /** A norm over the last axis, with the sites of its inside: `attn_in` and `.3` mark `attn_in_scale.3` and `attn_in_normalized.3`. */
  norm(site: string, suffix: string, norm: Norm, x: Tensor): Tensor {
    const y = this.normalised(norm, x, x.shape.at(-1) as number)
    this.inside(`${site}_scale${suffix}`, y, 'scale')
    this.inside(`${site}_normalized${suffix}`, y, 'normalized')
    return y
  }

  private normalised(norm: Norm, x: Tensor, width: number): Tensor {
    const stored = norm.weight ? this.parameters.get(norm.weight, [width]) : constant('float32', [width], new Float32Array(width).fill(1))
    const gain = norm.plusOne ? add(stored, 1) : stored
    const bias = norm.bias ? this.parameters.get(norm.bias, [width]) : undefined
    return norm.kind === 'rms' ? rmsNorm(x, gain, norm.eps) : layerNorm(x, gain, bias, norm.eps)
  }

  /** A norm of queries or keys [batch, pos, head, d_head]. */
  headNorm(norm: HeadNorm, x: Tensor): Tensor {
    const [heads, width] = x.shape.slice(2) as [number, number]
    const { weight, over, ...rest } = norm
    const plain = { ...rest, ...(typeof weight === 'string' ? { weight } : {}) }
    if (over === 'head') return this.normalised(plain, x, width)
    if (over === 'all heads')
      return reshape(this.normalised(plain, reshape(x, [...x.shape.slice(0, 2), heads * width]), heads * width), x.shape)
    const gain =
      typeof weight === 'string'
        ? this.parameters.get(weight, [heads, width])
        : concat(
            (weight as readonly string[]).map((w) => unsqueeze(this.parameters.get(w, [width]), 0)),
            0,
          )
    return mul(this.normalised(rest, x, width), gain)
  }

  /** A feed-forward network from and to `dModel`; `width` is that of the hidden layer where it has one. */
  mlp(x: Tensor, mlp: DenseMlp | ExpertMlp, dModel: number, width: number, layer: number): Tensor {
    const mark = (name: string, t: Tensor) => this.mark(`${name}.${layer}`, t)
    return mlp.kind === 'experts' ? this.experts(x, mlp, dModel, mark) : this.dense(x, mlp, dModel, width, mark)
  }

  private dense(x: Tensor, mlp: DenseMlp, dModel: number, width: number, mark: (name: string, t: Tensor) => Tensor = (_, t) => t): Tensor {
    const act = activations[mlp.activation]
    if (mlp.kind === 'plain') {
      const pre = mark('mlp_pre', this.linear(x, mlp.up, dModel, width))
      return this.linear(mark('mlp_act', act(pre)), mlp.down, width, dModel)
    }
    const [gate, up] = this.gateAndUp(x, mlp, dModel, width)
    const neurons = mul(act(mark('mlp_pre', gate)), mark('mlp_pre_linear', up))
    return this.linear(mark('mlp_act', neurons), mlp.down, width, dModel)
  }

  private gateAndUp(x: Tensor, { gate }: DenseMlp & { kind: 'gated' }, dModel: number, width: number): [Tensor, Tensor] {
    if ('gate' in gate) return [this.linear(x, gate.gate, dModel, width), this.linear(x, gate.up, dModel, width)]
    const both = this.linear(x, gate.gateUp, dModel, 2 * width)
    return [slice(both, 2, 0, width), slice(both, 2, width, 2 * width)]
  }

  /** Every expert computes every token, and its weight decides: the choice itself stays a value that can be read and edited. */
  private experts(x: Tensor, e: ExpertMlp, dModel: number, mark: (name: string, t: Tensor) => Tensor): Tensor {
    const probabilities = softmax(mark('router_logits', this.linear(x, e.router, dModel, e.count)))
    const { values, indices } = topK(probabilities, e.perToken)
    const weights = mark('expert_weights', e.normalised ? div(values, sum(values, [-1], true)) : values)
    const chosen = mark('expert_indices', cast(indices, 'float32'))
    const numbers = constant(
      'float32',
      [e.count],
      Float32Array.from({ length: e.count }, (_, i) => i),
    )
    const hits = cast(equal(unsqueeze(chosen, 3), numbers), 'float32')
    const weightOf = sum(mul(hits, unsqueeze(weights, 3)), [2])
    const parts = Array.from({ length: e.count }, (_, i) => mul(this.dense(x, e.expert(i), dModel, e.width), slice(weightOf, 2, i, i + 1)))
    const routed = parts.reduce((a, b) => add(a, b))
    if (!e.shared) return routed
    const { mlp, width, gate } = e.shared
    const shared = this.dense(x, mlp, dModel, width)
    return add(routed, gate ? mul(shared, sigmoid(this.linear(x, gate, dModel, 1))) : shared)
  }
}
