/** @file Normalisations: one fused node each, which expand so that scale and normalised value become visible. */
import { ShapeError } from '../../base/errors.ts'
import { need, one } from '../shape.ts'
import { type Attrs, apply, apply1, defineOp, type Expansion, type GradientContext, type OpRow, shown, type Tensor } from '../tensor.ts'
import { add, div, mul, reciprocal, sqrt, sub } from './elementwise.ts'
import { countOf, unbroadcast } from './like.ts'
import { mean } from './reduce.ts'

function checkWidth(op: string, inputs: readonly (Tensor | undefined)[]): ReturnType<OpRow['infer']> {
  const x = need(op, inputs, 0)
  for (const p of inputs.slice(1))
    if (p && (p.rank !== 1 || p.shape[0] !== x.shape.at(-1)))
      throw new ShapeError(`'${op}' over ${shown(x.shape)} needs parameters of shape [${x.shape.at(-1)}], not ${shown(p.shape)}.`)
  return one(x.dtype, x.shape)
}

/** Scale and normalised value by their definition; `centre` subtracts the mean first. */
function normalise(x: Tensor, eps: number, centre: boolean): { scale: Tensor; normalized: Tensor } {
  const centred = centre ? sub(x, mean(x, [-1], true)) : x
  const scale = sqrt(add(mean(mul(centred, centred), [-1], true), eps))
  return { scale, normalized: div(centred, scale) }
}

const expandNorm =
  (centre: boolean) =>
  ([x, gain, bias]: readonly (Tensor | undefined)[], a: Attrs): Expansion => {
    const inner = normalise(x as Tensor, a.eps as number, centre)
    const scaled = gain ? mul(inner.normalized, gain) : inner.normalized
    return { outputs: [bias ? add(scaled, bias) : scaled], inner }
  }

/**
 * Gradients of both norms: with n the normalised value, r one over the scale and h = g·gain,
 * x gets r·(h − n·mean(h·n)), less the mean of all that where the mean was subtracted. The statistics are computed again
 * from x, which is cheaper than keeping them across segments.
 */
const normGradient =
  (centre: boolean) =>
  ({ inputs, attrs, needs }: GradientContext, [grad]: readonly (Tensor | undefined)[]): (Tensor | undefined)[] => {
    const [x, gain, bias] = inputs as [Tensor, Tensor | undefined, Tensor | undefined]
    const g = grad as Tensor
    const [normalized, r] = apply('normalize', [x], { eps: attrs.eps, centre }) as [Tensor, Tensor]
    return [
      needs[0] ? normGradientOfInput(gain ? mul(g, gain) : g, normalized, r, centre) : undefined,
      needs[1] ? unbroadcast(mul(g, normalized), gain as Tensor) : undefined,
      needs[2] ? unbroadcast(g, bias as Tensor) : undefined,
    ]
  }

function normGradientOfInput(h: Tensor, normalized: Tensor, r: Tensor, centre: boolean): Tensor {
  const along = mean(mul(h, normalized), [-1], true)
  const inner = sub(centre ? sub(h, mean(h, [-1], true)) : h, mul(normalized, along))
  return mul(inner, r)
}

defineOp({
  name: 'normalize',
  doc: 'x / sqrt(mean(x²) + eps) over the last axis, after subtracting the mean when asked, and the factor on x: the two parts of the norms.',
  infer: (inputs) => {
    const x = need('normalize', inputs, 0)
    return [
      { dtype: x.dtype, shape: x.shape },
      { dtype: x.dtype, shape: x.shape.with(-1, 1) },
    ]
  },
  expand: ([x], a) => {
    const { scale, normalized } = normalise(x as Tensor, a.eps as number, a.centre as boolean)
    return { outputs: [normalized, reciprocal(scale)] }
  },
  // The fused kernels must know the width when compiled, and keep their statistics in float32.
  // WebGPU's kernel without a mean leaves its second output as it finds it.
  fuses: ({ inputs: [x], attrs }, device) =>
    x?.dtype === 'float32' && typeof x.shape.at(-1) === 'number' && (device !== 'webgpu' || attrs.centre === true),
  lower: (e, [x], node) => {
    const width = (node.inputs[0] as Tensor).shape.at(-1) as number
    const { eps, centre } = node.attrs as { eps: number; centre: boolean }
    const ones = e.constant('float32', [width], new Float32Array(width).fill(1))
    const attrs = { axis: -1, epsilon: { f: eps }, stash_type: 1 }
    if (!centre) return e.emit('SimplifiedLayerNormalization', [x as string, ones], attrs, { outputs: 2 })
    const [normalized, , r] = e.emit('LayerNormalization', [x as string, ones], attrs, { outputs: 3 })
    return [normalized as string, r as string]
  },
  gradient: ({ outputs, attrs }, [gn, gr]) => {
    const [normalized, r] = outputs as [Tensor, Tensor]
    const parts: Tensor[] = []
    if (gn) parts.push(normGradientOfInput(gn, normalized, r, attrs.centre as boolean))
    // r = (mean(c²) + eps)^(-1/2) changes by −r³·c/width = −r²·n/width.
    if (gr) parts.push(mul(normalized, div(mul(mul(gr, r), r), countOf(normalized, [normalized.rank - 1])).neg()))
    return [parts.length === 2 ? add(parts[0] as Tensor, parts[1] as Tensor) : parts[0]]
  },
})

defineOp({
  name: 'rms_norm',
  doc: 'x / sqrt(mean(x²) + eps), times a gain.',
  infer: (inputs) => checkWidth('rms_norm', inputs),
  expand: expandNorm(false),
  lower: (e, [x, gain], { attrs: a }) =>
    e.emit('SimplifiedLayerNormalization', [x as string, gain as string], { axis: -1, epsilon: { f: a.eps as number }, stash_type: 1 }),
  gradient: normGradient(false),
})

defineOp({
  name: 'layer_norm',
  doc: '(x - mean) / sqrt(variance + eps), times a gain, plus a bias.',
  infer: (inputs) => checkWidth('layer_norm', inputs),
  expand: expandNorm(true),
  lower: (e, [x, gain, bias], { attrs: a }) =>
    e.emit('LayerNormalization', [x as string, gain as string, ...(bias ? [bias] : [])], { axis: -1, epsilon: { f: a.eps as number } }),
  gradient: normGradient(true),
})

/** x / sqrt(mean(x²) + eps) · gain over the last axis. */
export const rmsNorm = (x: Tensor, gain: Tensor, eps: number) => apply1('rms_norm', [x, gain], { eps })
/** (x − mean) / sqrt(variance + eps) · gain + bias over the last axis. */
export const layerNorm = (x: Tensor, gain: Tensor, bias: Tensor | undefined, eps: number) => apply1('layer_norm', [x, gain, bias], { eps })
