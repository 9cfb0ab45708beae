/** @file Modules: plain functions of traced tensors that declare their parameters in a scope. */
import { ShapeError } from '../base/errors.ts'
import {
  add,
  type ConvOptions,
  cast,
  constant,
  conv,
  gather,
  gelu,
  greaterEqual,
  iota,
  layerNorm,
  matmul,
  mul,
  randomUniform,
  relu,
  rmsNorm,
  rotary,
  silu,
  type Tensor,
  tanh,
} from '../tensor/index.ts'
import { causalAttention } from './attention.ts'
import { type Initialiser, kaiming, normal, ones, zeros } from './initialisers.ts'
import type { Scope } from './parameters.ts'

const widthOf = (x: Tensor, what: string): number => {
  const width = x.shape.at(-1)
  if (typeof width !== 'number') throw new ShapeError(`${what} needs a last axis of known length, not '${width}'.`)
  return width
}

/** Settings of {@link linear}. */
export interface LinearOptions {
  readonly bias?: boolean
  readonly initialiser?: Initialiser
}

/** PyTorch's first values of linear layers and convolutions: uniform, variance 1/(3·fan-in). */
const defaultWeights = kaiming('uniform', 1 / Math.sqrt(3))

/** x [… , in] · `weight` [in, out] + `bias` [out]. */
export function linear(scope: Scope, x: Tensor, out: number, { bias = true, initialiser = defaultWeights }: LinearOptions = {}): Tensor {
  const y = matmul(x, scope.parameter('weight', [widthOf(x, 'A linear layer'), out], initialiser))
  return bias ? add(y, scope.parameter('bias', [out], zeros)) : y
}

/** Rows of `weight` [count, width] for int64 numbers […]; the table itself can be used again to tie the unembedding. */
export function embedding(scope: Scope, ids: Tensor, count: number, width: number, initialiser: Initialiser = normal(0.02)): Tensor {
  return gather(embeddingTable(scope, count, width, initialiser), ids)
}

/** The table of an embedding, [count, width]. */
export function embeddingTable(scope: Scope, count: number, width: number, initialiser: Initialiser = normal(0.02)): Tensor {
  return scope.parameter('weight', [count, width], initialiser)
}

/** Logits of x [… , width] for the rows of a table [count, width]: an unembedding with tied weights. */
export function tiedLogits(x: Tensor, table: Tensor): Tensor {
  return matmul(x, table, { transB: true })
}

/** Layer norm with a learnt `weight` and `bias` [width] (Ba et al. 2016). */
export function layerNormed(scope: Scope, x: Tensor, eps = 1e-5): Tensor {
  const width = widthOf(x, 'A layer norm')
  return layerNorm(x, scope.parameter('weight', [width], ones), scope.parameter('bias', [width], zeros), eps)
}

/** RMS norm with a learnt `weight` [width] (Zhang and Sennrich 2019). */
export function rmsNormed(scope: Scope, x: Tensor, eps = 1e-5): Tensor {
  return rmsNorm(x, scope.parameter('weight', [widthOf(x, 'An RMS norm')], ones), eps)
}

/** Settings of {@link selfAttention}. */
export interface AttentionOptions extends LinearOptions {
  readonly heads: number
  readonly kvHeads?: number
  /** Rotates queries and keys by their positions (Su et al. 2021): base of the wavelengths. */
  readonly rotaryBase?: number
}

/** Causal self-attention over x [batch, pos, width]: `q`, `k`, `v` and `o` are linear layers. */
export function selfAttention(scope: Scope, x: Tensor, { heads, kvHeads = heads, rotaryBase, ...layer }: AttentionOptions): Tensor {
  const width = widthOf(x, 'Attention')
  const size = width / heads
  const project = (name: string, n: number) => linear(scope.in(name), x, n * size, layer)
  const [q, k, v] = [project('q', heads), project('k', kvHeads), project('v', kvHeads)]
  const turn = rotaryBase === undefined ? (t: Tensor) => t : turned(x, size, rotaryBase)
  return linear(scope.in('o'), causalAttention(turn(q, heads), turn(k, kvHeads), v, { heads, kvHeads }), width, layer)
}

/** Rotation of heads by their positions, neighbouring coordinates being a pair. */
function turned(x: Tensor, size: number, base: number): (t: Tensor, heads: number) => Tensor {
  const [batch, pos] = x.shape
  if (typeof batch !== 'number' || typeof pos !== 'number')
    throw new ShapeError(`Rotary attention is trained on a known batch and length, not [${batch}, ${pos}].`)
  const half = size / 2
  const angle = (i: number) => Math.floor(i / half) * base ** (-(i % half) / half)
  const table = (f: (a: number) => number) =>
    constant(
      'float32',
      [pos, half],
      Float32Array.from({ length: pos * half }, (_, i) => f(angle(i))),
    )
  const positions = constant(
    'int64',
    [batch, pos],
    BigInt64Array.from({ length: batch * pos }, (_, i) => BigInt(i % pos)),
  )
  const tables = { cos: table(Math.cos), sin: table(Math.sin) }
  return (t, heads) => rotary(t, positions, tables, { heads, interleaved: true })
}

/** Functions between the two layers of an {@link mlp}. */
export const activations = { relu, gelu, silu, tanh, gelu_tanh: (x: Tensor) => gelu(x, 'tanh') } as const

/** Settings of {@link mlp}. */
export interface MlpOptions extends LinearOptions {
  readonly hidden: number
  readonly activation?: keyof typeof activations
  /** A second product that the activation is multiplied with (GLU; Shazeer 2020): layers `gate`, `up`, `down` instead of `up`, `down`. */
  readonly gated?: boolean
}

/** Two linear layers with an activation between them, from and to the width of x [… , width]. */
export function mlp(scope: Scope, x: Tensor, { hidden, activation = 'gelu', gated = false, ...layer }: MlpOptions): Tensor {
  const up = linear(scope.in('up'), x, hidden, layer)
  const act = activations[activation]
  const inner = gated ? mul(act(linear(scope.in('gate'), x, hidden, layer)), up) : act(up)
  return linear(scope.in('down'), inner, widthOf(x, 'An MLP'), layer)
}

/** Settings of {@link transformerBlock}. */
export interface BlockOptions {
  readonly attention: AttentionOptions
  readonly mlp: MlpOptions
  readonly norm?: 'layer' | 'rms'
}

/** A pre-norm transformer block over x [batch, pos, width]: `norm1`, `attention`, `norm2`, `mlp`. */
export function transformerBlock(scope: Scope, x: Tensor, options: BlockOptions): Tensor {
  const norm = { layer: layerNormed, rms: rmsNormed }[options.norm ?? 'layer']
  const mid = add(x, selfAttention(scope.in('attention'), norm(scope.in('norm1'), x), options.attention))
  return add(mid, mlp(scope.in('mlp'), norm(scope.in('norm2'), mid), options.mlp))
}

/** Convolution of x [batch, channel, …] with `weight` [out, channel/groups, kernel…] and `bias` [out]. */
export function convolution(
  scope: Scope,
  x: Tensor,
  options: ConvOptions & LinearOptions & { readonly out: number; readonly kernel: readonly number[] },
): Tensor {
  const { out, kernel, bias = true, initialiser = defaultWeights, ...layout } = options
  const channels = x.shape[1]
  if (typeof channels !== 'number') throw new ShapeError(`A convolution needs a known number of channels, not '${channels}'.`)
  const weight = scope.parameter('weight', [out, channels / (layout.groups ?? 1), ...kernel], initialiser)
  return conv(x, weight, bias ? scope.parameter('bias', [out], zeros) : undefined, layout)
}

/** Zeros a part `rate` of the values and scales up the rest (Srivastava et al. 2014), by numbers counted from a seed and the model's input `step`. */
export function dropout(
  x: Tensor,
  options: { readonly rate: number; readonly step: Tensor; readonly seed?: number; readonly stream?: number },
): Tensor {
  const { rate, step, seed = 0, stream = 0 } = options
  const drawn = randomUniform(x.shape, { seed, step, stream }, { like: [x] })
  return mul(x, cast(mul(cast(greaterEqual(drawn, rate), 'float32'), 1 / (1 - rate)), x.dtype))
}

/** Learnt vectors `weight` [length, width] for the positions of x [batch, pos, width], added to it. */
export function addPositions(scope: Scope, x: Tensor, length: number, initialiser: Initialiser = normal(0.02)): Tensor {
  return add(x, gather(scope.parameter('weight', [length, widthOf(x, 'An embedding of positions')], initialiser), iota(x, 1)))
}
