/** @file Norms of images and other [batch, channel, …] tensors: batch, group, instance. */
import { ShapeError } from '../../base/errors.ts'
import { need, one } from '../shape.ts'
import { type Attrs, apply1, type Dim, defineOp, type Expansion, shown, type Tensor } from '../tensor.ts'
import { add, div, mul, sqrt, sub } from './elementwise.ts'
import { reshapeTo, unsqueezeAll } from './like.ts'
import { mean } from './reduce.ts'

/** Refuses parameters that are not one value for each channel. */
function checkChannels(op: string, inputs: readonly (Tensor | undefined)[]): Tensor {
  const x = need(op, inputs, 0)
  if (x.rank < 2) throw new ShapeError(`'${op}' needs a tensor [batch, channel, …], not ${shown(x.shape)}.`)
  for (const p of inputs.slice(1))
    if (p && (p.rank !== 1 || p.shape[0] !== x.shape[1]))
      throw new ShapeError(`'${op}' of ${shown(x.shape)} needs parameters of shape [${x.shape[1]}], not ${shown(p.shape)}.`)
  return x
}

/** A parameter of one value for each channel, spread over the other axes. */
function overChannels(p: Tensor, x: Tensor): Tensor {
  return unsqueezeAll(
    p,
    Array.from({ length: x.rank - 2 }, (_, i) => i + 1),
  )
}

function scaled(normalized: Tensor, gain: Tensor | undefined, bias: Tensor | undefined): Tensor {
  const grown = gain ? mul(normalized, overChannels(gain, normalized)) : normalized
  return bias ? add(grown, overChannels(bias, normalized)) : grown
}

defineOp({
  name: 'group_norm',
  doc: 'Normalises each group of channels of [batch, channel, …] over all that it holds, then scales and shifts each channel.',
  infer: (inputs, a) => {
    const x = checkChannels('group_norm', inputs)
    const channels = x.shape[1]
    if (typeof channels !== 'number' || channels % (a.groups as number) !== 0)
      throw new ShapeError(`'group_norm' cannot make ${a.groups} groups of the ${channels} channels of ${shown(x.shape)}.`)
    return one(x.dtype, x.shape)
  },
  expand: ([value, gain, bias], a: Attrs): Expansion => {
    const x = value as Tensor
    const flat = reshapeTo(x, [x.shape[0] as Dim, a.groups as number, ...perGroup(x.shape, a.groups as number)], x)
    const normalized = apply1('normalize_axes', [flat], { axes: flat.shape.map((_, i) => i).slice(2), eps: a.eps })
    return { outputs: [scaled(reshapeTo(normalized, x.shape, x), gain, bias)] }
  },
})

/** Axes of one group: its channels, then the others. */
function perGroup(shape: readonly Dim[], groups: number): Dim[] {
  return [(shape[1] as number) / groups, ...shape.slice(2)]
}

defineOp({
  name: 'normalize_axes',
  doc: '(x − mean) / sqrt(variance + eps) over any axes.',
  infer: (inputs) => [need('normalize_axes', inputs, 0)],
  expand: ([value], a) => {
    const x = value as Tensor
    const axes = a.axes as readonly number[]
    const centred = sub(x, mean(x, axes, true))
    return { outputs: [div(centred, deviation(centred, axes, a.eps as number))] }
  },
  gradient: ({ inputs: [value], outputs: [y], attrs }, [grad]) => {
    const [x, normalized, g] = [value, y, grad] as [Tensor, Tensor, Tensor]
    const axes = attrs.axes as readonly number[]
    const scale = deviation(sub(x, mean(x, axes, true)), axes, attrs.eps as number)
    const inner = sub(sub(g, mean(g, axes, true)), mul(normalized, mean(mul(g, normalized), axes, true)))
    return [div(inner, scale)]
  },
})

function deviation(centred: Tensor, axes: readonly number[], eps: number): Tensor {
  return sqrt(add(mean(mul(centred, centred), axes, true), eps))
}

defineOp({
  name: 'batch_norm',
  doc: 'Scales and shifts each channel of [batch, channel, …] by given means and variances (inputs: x, gain, bias, mean, variance).',
  infer: (inputs) => {
    const x = checkChannels('batch_norm', inputs)
    for (let i = 1; i < 5; i++) need('batch_norm', inputs, i)
    return one(x.dtype, x.shape)
  },
  lower: (e, inputs, { attrs: a }) => e.emit('BatchNormalization', inputs, { epsilon: { f: a.eps as number } }),
  expand: (inputs, a) => {
    const [x, gain, bias, centre, variance] = inputs as [Tensor, Tensor, Tensor, Tensor, Tensor]
    const factor = div(gain, sqrt(add(variance, a.eps as number)))
    return { outputs: [scaled(x, factor, sub(bias, mul(centre, factor)))] }
  },
})

/** Group norm of [batch, channel, …]; gain and bias [channel] may be left out. */
export const groupNorm = (x: Tensor, groups: number, gain: Tensor | undefined, bias: Tensor | undefined, eps = 1e-5) =>
  apply1('group_norm', [x, gain, bias], { groups, eps })
/** Instance norm of [batch, channel, …]: every channel of every item by itself. */
export const instanceNorm = (x: Tensor, gain: Tensor | undefined, bias: Tensor | undefined, eps = 1e-5) =>
  groupNorm(x, x.shape[1] as number, gain, bias, eps)
/** Batch norm of [batch, channel, …] by recorded statistics [channel], as after training. */
export const batchNorm = (x: Tensor, p: { gain: Tensor; bias: Tensor; mean: Tensor; variance: Tensor }, eps = 1e-5) =>
  apply1('batch_norm', [x, p.gain, p.bias, p.mean, p.variance], { eps })
/** Batch norm by the statistics of the batch itself, as in training, and these statistics [channel] for a running record; the variance is the biased one. */
export function batchNormTraining(x: Tensor, gain: Tensor, bias: Tensor, eps = 1e-5): { y: Tensor; mean: Tensor; variance: Tensor } {
  const axes = x.shape.map((_, i) => i).filter((i) => i !== 1)
  const centre = mean(x, axes)
  const centred = sub(x, overChannels(centre, x))
  const y = scaled(apply1('normalize_axes', [x], { axes, eps }), gain, bias)
  return { y, mean: centre, variance: mean(mul(centred, centred), axes) }
}
