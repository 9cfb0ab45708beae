/** @file Sparse autoencoders on traced tensors: encode and decode of every kind, for programs, edits and training alike. */
import {
  abs,
  add,
  div,
  equal,
  exp,
  expand,
  gatherElements,
  greater,
  matmul,
  max,
  mean,
  mul,
  relu,
  reshape,
  scalar,
  scatterElements,
  sqrt,
  sub,
  sum,
  type Tensor,
  topK,
  transpose,
  where,
} from '../../tensor/index.ts'
import type { SaeWeights } from './weights.ts'

/** What the graph depends on besides the numbers. */
export type SaeForm = Pick<SaeWeights, 'kind' | 'k' | 'subtractsBias' | 'normalize' | 'rescales' | 'transcoder'>

/** Tensors by SAELens' names. */
export type SaeTensors = Readonly<Record<string, Tensor>>

/** A form as text: equal texts give equal graphs. */
export function formKey({ kind, k, subtractsBias, normalize, rescales, transcoder }: SaeForm): string {
  return JSON.stringify([kind, k ?? 0, subtractsBias, normalize, rescales, transcoder])
}

/** An input made ready for the encoder, and what that did. */
export interface Normalized {
  readonly value: Tensor
  /** Turns what was decoded into the scale of the input. */
  readonly undo: (decoded: Tensor) => Tensor
  /** The same for a difference of two decoded values. */
  readonly undoDifference: (difference: Tensor) => Tensor
}

const same = (x: Tensor) => x

type NormalizeRow = (x: Tensor, width: number) => Normalized

const rows: Readonly<Record<'layer_norm' | 'constant_norm_rescale', NormalizeRow>> = {
  // The standard deviation has n − 1 below the line, as torch's does.
  layer_norm: (x, width) => {
    const middle = mean(x, [-1], true)
    const off = sub(x, middle)
    const std = sqrt(mul(sum(mul(off, off), [-1], true), 1 / (width - 1)))
    return {
      value: div(off, add(std, 1e-5)),
      undo: (y) => add(mul(y, std), middle),
      undoDifference: (y) => mul(y, std),
    }
  },
  constant_norm_rescale: (x, width) => {
    const factor = div(scalar(Math.sqrt(width)), sqrt(sum(mul(x, x), [-1], true)))
    const undo = (y: Tensor) => div(y, factor)
    return { value: mul(x, factor), undo, undoDifference: undo }
  },
}

/** The input as the encoder wants it; a transcoder's output is of another place, so nothing is undone there. */
export function normalized(form: SaeForm, x: Tensor): Normalized {
  const row = (rows as Partial<Record<string, NormalizeRow>>)[form.normalize]
  if (!row) return { value: x, undo: same, undoDifference: same }
  const done = row(x, x.shape.at(-1) as number)
  return form.transcoder ? { value: done.value, undo: same, undoDifference: same } : done
}

/** Lengths of the decoder rows, [d_sae]. */
export function rowNorms(decoder: Tensor): Tensor {
  return sqrt(sum(mul(decoder, decoder), [-1]))
}

/** Pre-activations of a normalised input [… , d_in]: [… , d_sae]; the gate's for gated ones. */
export function preActivations(form: SaeForm, w: SaeTensors, x: Tensor): Tensor {
  const z = add(projected(form, w, x), (w.b_enc ?? w.b_gate) as Tensor)
  return form.rescales ? mul(z, rowNorms(w.W_dec as Tensor)) : z
}

function projected(form: SaeForm, w: SaeTensors, x: Tensor): Tensor {
  return matmul(form.subtractsBias ? sub(x, w.b_dec as Tensor) : x, w.W_enc as Tensor)
}

/** The k latents that are kept at each position, and their values, [… , k]. */
export function topLatents(form: SaeForm, z: Tensor): { values: Tensor; indices: Tensor } {
  if (form.kind !== 'abstopk') {
    const { values, indices } = topK(z, form.k as number)
    return { values: relu(values), indices }
  }
  const { indices } = topK(abs(z), form.k as number)
  return { values: gatherElements(z, indices, -1), indices }
}

/** Values at their places among zeros like `z`. */
const scattered = (z: Tensor, { values, indices }: { values: Tensor; indices: Tensor }) =>
  scatterElements(expand(scalar(0), z.shape, z), indices, values, -1)

type Activate = (form: SaeForm, w: SaeTensors, z: Tensor, x: Tensor) => Tensor

const zeroBelow = (condition: Tensor, z: Tensor) => where(condition, z, 0)

const activations: Readonly<Record<SaeForm['kind'], Activate>> = {
  standard: (_, __, z) => relu(z),
  topk: (form, _, z) => scattered(z, topLatents(form, z)),
  abstopk: (form, _, z) => scattered(z, topLatents(form, z)),
  jumprelu: (_, w, z) => zeroBelow(greater(z, w.threshold as Tensor), relu(z)),
  gated: (form, w, z, x) => zeroBelow(greater(z, 0), relu(add(mul(projected(form, w, x), exp(w.r_mag as Tensor)), w.b_mag as Tensor))),
  groupmax: (form, _, z) => {
    const k = form.k as number
    const positive = relu(z)
    const groups = reshape(positive, [...z.shape.slice(0, -1), k, (z.shape.at(-1) as number) / k])
    return reshape(zeroBelow(equal(groups, max(groups, [-1], true)), groups), z.shape)
  },
}

/** Activations of the latents for a normalised input [… , d_in]: [… , d_sae]. */
export function encodeNormalized(form: SaeForm, w: SaeTensors, x: Tensor): Tensor {
  return activations[form.kind](form, w, preActivations(form, w, x), x)
}

/** What activations [… , d_sae] stand for, without b_dec and before normalisation is undone: [… , d_out]. */
export function decodeLinear(form: SaeForm, w: SaeTensors, acts: Tensor): Tensor {
  const decoder = w.W_dec as Tensor
  return matmul(form.rescales ? div(acts, rowNorms(decoder)) : acts, decoder)
}

/** The output for activations and the raw input that they came from, [… , d_out]. */
export function decodeTraced(form: SaeForm, w: SaeTensors, acts: Tensor, x: Tensor, by: Normalized): Tensor {
  const decoded = by.undo(add(decodeLinear(form, w, acts), w.b_dec as Tensor))
  // The skip sees the input as it is, and what it adds is not scaled back (sparsify; SAELens).
  return w.W_skip ? add(decoded, matmul(x, transpose(w.W_skip, [1, 0]))) : decoded
}

/** Activations and reconstruction of an input [… , d_in]. */
export function forwardTraced(form: SaeForm, w: SaeTensors, x: Tensor): { acts: Tensor; output: Tensor } {
  const by = normalized(form, x)
  const acts = encodeNormalized(form, w, by.value)
  return { acts, output: decodeTraced(form, w, acts, x, by) }
}
