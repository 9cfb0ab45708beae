/** @file Normalisations: one fused node each, which expand so that scale and normalised value become visible. */
import { ShapeError } from '../../base/errors.ts'
import { need, one } from '../shape.ts'
import { type Attrs, apply1, defineOp, type Expansion, type OpRow, shown, type Tensor } from '../tensor.ts'
import { add, div, mul, sqrt, sub } from './elementwise.ts'
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

defineOp({
  name: 'rms_norm',
  doc: 'x / sqrt(mean(x²) + eps), times a gain.',
  infer: (inputs) => checkWidth('rms_norm', inputs),
  expand: expandNorm(false),
  lower: (e, [x, gain], { attrs: a }) =>
    e.emit('SimplifiedLayerNormalization', [x as string, gain as string], { axis: -1, epsilon: { f: a.eps as number }, stash_type: 1 }),
})

defineOp({
  name: 'layer_norm',
  doc: '(x - mean) / sqrt(variance + eps), times a gain, plus a bias.',
  infer: (inputs) => checkWidth('layer_norm', inputs),
  expand: expandNorm(true),
  lower: (e, [x, gain, bias], { attrs: a }) =>
    e.emit('LayerNormalization', [x as string, gain as string, ...(bias ? [bias] : [])], { axis: -1, epsilon: { f: a.eps as number } }),
})

/** x / sqrt(mean(x²) + eps) · gain over the last axis. */
export const rmsNorm = (x: Tensor, gain: Tensor, eps: number) => apply1('rms_norm', [x, gain], { eps })
/** (x − mean) / sqrt(variance + eps) · gain + bias over the last axis. */
export const layerNorm = (x: Tensor, gain: Tensor, bias: Tensor | undefined, eps: number) => apply1('layer_norm', [x, gain, bias], { eps })
