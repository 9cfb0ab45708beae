/** @file What sparse autoencoders are trained on: the losses of every kind, traced, with the gradients that their papers define. */
import { UsageError } from '../../base/errors.ts'
import { normalized, rowNorms, type SaeForm } from '../../models/sae/traced.ts'
import { initialisers, type ModelFunction, encode as nnEncode, type Scope, sparseDecode } from '../../nn/index.ts'
import {
  add,
  and,
  cast,
  customGradient,
  div,
  equal,
  exp,
  expand,
  gather,
  greater,
  greaterEqual,
  less,
  matmul,
  maximum,
  mean,
  min,
  minimum,
  mul,
  relu,
  reshape,
  scalar,
  scatterAdd,
  slice,
  stopGradient,
  sub,
  sum,
  type Tensor,
  tanh,
  topK,
  where,
} from '../../tensor/index.ts'
import type { SaeRecipe } from './recipe.ts'

/** Names of a batch's inputs. */
export const saeInputs = { x: 'x', deadLatents: 'dead_latents', deadMask: 'dead_mask' } as const
/** Arrays that are kept with the parameters but not trained. */
export const saeState = { sinceFired: 'steps_since_fired', threshold: 'topk_threshold', scale: 'input_scale' } as const

const f32 = (x: Tensor) => cast(x, 'float32')
const rowSum = (x: Tensor) => sum(x, [-1])
const squares = (x: Tensor) => rowSum(mul(x, x))

/** First values: decoder rows of one length in random directions, the encoder their transpose, biases zero. */
export function startingValues(recipe: SaeRecipe, dIn: number): Readonly<Record<string, initialisers.Initialiser>> {
  const rows: initialisers.Initialiser = (shape, random) => {
    const data = initialisers.normal()(shape, random)
    for (let at = 0; at < data.length; at += dIn) {
      const row = data.subarray(at, at + dIn)
      const length = Math.sqrt(row.reduce((s, v) => s + v * v, 0))
      for (let i = 0; i < dIn; i++) row[i] = ((row[i] as number) * recipe.decoderNorm) / length
    }
    return data
  }
  return {
    W_dec: rows,
    W_enc: initialisers.zeros,
    b_dec: initialisers.zeros,
    b_enc: initialisers.zeros,
    b_gate: initialisers.zeros,
    b_mag: initialisers.zeros,
    r_mag: initialisers.zeros,
    threshold: initialisers.constantOf(recipe.firstThreshold),
  }
}

/** Names and shapes of the trained parameters. */
export function parameterShapes({ kind, width }: Pick<SaeRecipe, 'kind' | 'width'>, dIn: number): Record<string, number[]> {
  return {
    W_dec: [width, dIn],
    W_enc: [dIn, width],
    b_dec: [dIn],
    ...(kind === 'gated' ? { b_gate: [width], b_mag: [width], r_mag: [width] } : { b_enc: [width] }),
    ...(kind === 'jumprelu' ? { threshold: [width] } : {}),
  }
}

/** The form under which a kind is trained; once trained, BatchTopK and Matryoshka are JumpReLU with one threshold. */
export function trainingForm(recipe: SaeRecipe): SaeForm {
  const kind = {
    standard: 'standard',
    topk: 'topk',
    batchtopk: 'jumprelu',
    matryoshka: 'jumprelu',
    jumprelu: 'jumprelu',
    gated: 'gated',
  } as const
  return {
    kind: kind[recipe.kind],
    ...(recipe.kind === 'topk' ? { k: recipe.k as number } : {}),
    subtractsBias: recipe.subtractsBias,
    normalize: recipe.scale === 'layer_norm' || recipe.scale === 'constant_norm_rescale' ? recipe.scale : 'none',
    rescales: recipe.rescales,
    transcoder: false,
  }
}

/** K((z − θ)/ε) of the straight-through gradients: 1 within half a bandwidth of the threshold. */
const near = (z: Tensor, threshold: Tensor, bandwidth: number) => {
  const u = mul(sub(z, threshold), 1 / bandwidth)
  return f32(and(less(u, scalar(0.5)), greater(u, scalar(-0.5))))
}

/** z where it exceeds its threshold; ∂/∂θ = −(θ/ε)·K((z − θ)/ε) (Rajamanoharan et al. 2024). */
export const jumpRelu = (bandwidth: number) =>
  customGradient({
    forward: (z, threshold) => where(greater(z as Tensor, threshold as Tensor), z as Tensor, 0),
    backward: (g, [z, threshold]) => [
      where(greater(z as Tensor, threshold as Tensor), g, 0),
      sum(mul(mul(near(z as Tensor, threshold as Tensor, bandwidth), g), mul(threshold as Tensor, -1 / bandwidth)), [0]),
    ],
  })

/** 1 where z exceeds its threshold; ∂/∂θ = −(1/ε)·K((z − θ)/ε), none with respect to z. */
export const stepAbove = (bandwidth: number) =>
  customGradient({
    forward: (z, threshold) => f32(greater(z as Tensor, threshold as Tensor)),
    backward: (g, [z, threshold]) => [undefined, mul(sum(mul(near(z as Tensor, threshold as Tensor, bandwidth), g), [0]), -1 / bandwidth)],
  })

/** What one kind makes of a batch. */
interface Pass {
  /** Activations as a whole [batch, d_sae], where they were made. */
  readonly acts?: Tensor
  /** Output in the scale of the normalised input, [batch, d_in]. */
  readonly output: Tensor
  /** Number of active latents of each row, [batch]; rows in which each latent is active, [d_sae]. */
  readonly active: Tensor
  readonly fired: Tensor
  /** Pre-activations, of which dead latents are revived. */
  readonly z: Tensor
  /** Terms of the loss besides the squared error: [name, value times its coefficient]. */
  readonly penalty?: Tensor
  /** Smallest kept activation of the batch. */
  readonly least?: Tensor
}

interface Context {
  readonly recipe: SaeRecipe
  readonly w: Readonly<Record<string, Tensor>>
  /** The normalised input. */
  readonly x: Tensor
  readonly norms: Tensor
  /** The coefficient of sparsity at this step, which rises from zero. */
  readonly coefficient: Tensor
  readonly width: number
}

const projected = ({ w, x, recipe }: Context, bias: Tensor) =>
  recipe.subtractsBias
    ? nnEncode(x, { encoder: w.W_enc as Tensor, encoderBias: bias, decoderBias: w.b_dec as Tensor })
    : add(matmul(x, w.W_enc as Tensor), bias)

/** Pre-activations, multiplied by the lengths of decoder rows where those are free and the k largest are kept. */
function preActs(c: Context, bias: Tensor): Tensor {
  const z = projected(c, bias)
  return c.recipe.rescales ? mul(z, c.norms) : z
}

const decodeDense = (c: Context, acts: Tensor) =>
  add(matmul(c.recipe.rescales ? div(acts, c.norms) : acts, c.w.W_dec as Tensor), c.w.b_dec as Tensor)

const counted = (acts: Tensor) => {
  const on = f32(greater(acts, 0))
  return { active: rowSum(on), fired: sum(on, [0]) }
}

/** Activations weighted by what they write: the length of the decoder row, which is 1 where rows are kept at that. */
const weighted = (c: Context, acts: Tensor) => (c.recipe.decoder === 'unit' ? acts : mul(acts, c.norms))

const passes: Readonly<Record<SaeRecipe['kind'], (c: Context) => Pass>> = {
  standard(c) {
    const z = preActs(c, c.w.b_enc as Tensor)
    const acts = relu(z)
    return { acts, z, output: decodeDense(c, acts), ...counted(acts), penalty: mul(mean(rowSum(weighted(c, acts))), c.coefficient) }
  },

  topk(c) {
    const z = preActs(c, c.w.b_enc as Tensor)
    const kept = topK(z, c.recipe.k as number)
    const values = relu(kept.values)
    const scaled = c.recipe.rescales ? div(values, gather(c.norms, kept.indices, 0)) : values
    const output = add(sparseDecode(scaled, kept.indices, c.w.W_dec as Tensor), c.w.b_dec as Tensor)
    const on = f32(greater(values, 0))
    const count = (values.shape[0] as number) * (c.recipe.k as number)
    const fired = scatterAdd(expand(scalar(0), [c.width], on), reshape(kept.indices, [count]), reshape(on, [count]), 0)
    return { z, output, active: rowSum(on), fired }
  },

  batchtopk(c) {
    const { z, acts, least } = largestOfBatch(c)
    return { z, acts, output: decodeDense(c, acts), least, ...counted(acts) }
  },

  matryoshka(c) {
    const { z, acts, least } = largestOfBatch(c)
    const scaled = c.recipe.rescales ? div(acts, c.norms) : acts
    const inner = (c.recipe.groups as readonly number[]).slice(0, -1).map((width) => {
      const part = add(matmul(slice(scaled, 1, 0, width), slice(c.w.W_dec as Tensor, 0, 0, width)), c.w.b_dec as Tensor)
      return mean(squares(sub(c.x, part)))
    })
    const penalty = inner.length > 0 ? { penalty: inner.reduce((a, b) => add(a, b)) } : {}
    return { z, acts, output: decodeDense(c, acts), least, ...penalty, ...counted(acts) }
  },

  jumprelu(c) {
    const { bandwidth, targetL0, penalty: form } = c.recipe
    const z = preActs(c, c.w.b_enc as Tensor)
    const threshold = c.w.threshold as Tensor
    const acts = jumpRelu(bandwidth)(z, threshold)
    const counts = form === 'tanh' ? tanh(mul(weighted(c, acts), 4)) : stepAbove(bandwidth)(z, threshold)
    const amount = mean(rowSum(counts))
    const off = targetL0 === undefined ? amount : sub(mul(amount, 1 / targetL0), 1)
    const value = targetL0 === undefined ? amount : mul(off, off)
    return { acts, z, output: decodeDense(c, acts), ...counted(acts), penalty: mul(value, c.coefficient) }
  },

  gated(c) {
    const { w, recipe } = c
    const inner = recipe.subtractsBias ? sub(c.x, w.b_dec as Tensor) : c.x
    const product = matmul(inner, w.W_enc as Tensor)
    const gate = add(product, w.b_gate as Tensor)
    const magnitude = relu(add(mul(product, exp(w.r_mag as Tensor)), w.b_mag as Tensor))
    const acts = where(greater(gate, 0), magnitude, 0)
    const open = relu(gate)
    // The auxiliary reconstruction teaches the gate alone where decoder rows are kept at length one (Rajamanoharan et al. 2024).
    const own = recipe.decoder === 'unit' ? stopGradient : (t: Tensor) => t
    const rebuilt = add(matmul(open, own(w.W_dec as Tensor)), own(w.b_dec as Tensor))
    const sparse = mul(mean(rowSum(weighted(c, open))), c.coefficient)
    return { acts, z: gate, output: decodeDense(c, acts), ...counted(acts), penalty: add(sparse, mean(squares(sub(c.x, rebuilt)))) }
  },
}

/** The k·batch largest activations of a batch. */
function largestOfBatch(c: Context): { z: Tensor; acts: Tensor; least: Tensor } {
  const z = preActs(c, c.w.b_enc as Tensor)
  const positive = relu(z)
  const rows = z.shape[0] as number
  const count = Math.floor((c.recipe.k as number) * rows)
  const { values } = topK(reshape(positive, [rows * c.width]), count, 0)
  const last = stopGradient(min(values))
  const acts = where(and(greaterEqual(positive, last), greater(positive, 0)), positive, 0)
  return { z, acts, least: min(where(greater(values, 0), values, Number.MAX_VALUE)) }
}

/**
 * The residual, as dead latents would rebuild it: of those the k largest at each row (Gao et al. 2024). `dead_latents` lists them, filled up
 * with others to at least k, which `dead_mask` takes out.
 */
function auxiliary(c: Context, pass: Pass, inputs: Readonly<Record<string, Tensor>>): Tensor {
  const { recipe, w } = c
  const list = inputs[saeInputs.deadLatents] as Tensor
  const listed = inputs[saeInputs.deadMask] as Tensor
  const unit = recipe.decoder === 'unit'
  // Those that fire in this very batch are dead no longer (dictionary_learning); SAELens counts them still.
  const mask = unit ? mul(listed, f32(equal(stopGradient(gather(pass.fired, list, 0)), 0))) : listed
  const z = gather(pass.z, list, 1)
  const candidates = where(greater(expand(mask, z.shape, z), 0.5), unit ? relu(z) : z, -1e30)
  const { values } = topK(candidates, recipe.auxK)
  const kept = where(greaterEqual(candidates, stopGradient(maximum(min(values, [-1], true), -1e29))), candidates, 0)
  const rows = gather(w.W_dec as Tensor, list, 0)
  const rebuilt = matmul(recipe.rescales ? div(kept, gather(c.norms, list, 0)) : kept, rows)
  const residual = stopGradient(sub(c.x, pass.output))
  const error = mean(squares(sub(residual, rebuilt)))
  const alive = sum(mask)
  if (!unit) return mul(mul(error, minimum(mul(alive, 1 / recipe.auxK), 1)), recipe.aux)
  const spread = mean(squares(sub(residual, mean(residual, [0], true))))
  // A residual without spread has nothing to teach.
  return mul(where(and(greater(spread, 0), greater(alive, 0)), div(error, maximum(spread, 1e-30)), 0), recipe.aux)
}

/** The model that the training loop is given: from a batch of rows to the loss and what is watched. */
export function saeModel(recipe: SaeRecipe, dIn: number): ModelFunction {
  const pass = passes[recipe.kind]
  if (!pass) throw new UsageError(`There is no way to train a '${recipe.kind}' autoencoder; kinds are ${Object.keys(passes).join(', ')}.`)
  const first = startingValues(recipe, dIn)
  return (inputs, scope: Scope) => {
    const w = Object.fromEntries(
      Object.entries(parameterShapes(recipe, dIn)).map(([name, shape]) => [
        name,
        scope.parameter(name, shape, first[name] as initialisers.Initialiser),
      ]),
    )
    const raw = inputs[saeInputs.x] as Tensor
    const scaled = recipe.scale === 'expected_average_only_in' ? mul(raw, scope.parameter(saeState.scale, [1], initialisers.ones)) : raw
    const by = normalized(trainingForm(recipe), scaled)
    const done = sub(cast(inputs.step as Tensor, 'float32'), 1)
    const risen = recipe.sparsityWarmup > 0 ? minimum(mul(done, 1 / recipe.sparsityWarmup), 1) : scalar(1)
    const c: Context = {
      recipe,
      w,
      x: by.value,
      norms: rowNorms(w.W_dec as Tensor),
      coefficient: mul(risen, recipe.sparsity),
      width: recipe.width,
    }
    const p = pass(c)
    const error = sub(scaled, by.undo(p.output))
    const mse = mean(squares(error))
    const aux = recipe.aux > 0 ? auxiliary(c, p, inputs) : undefined
    const terms = [mse, ...(p.penalty ? [p.penalty] : []), ...(aux ? [aux] : [])]
    const off = sub(scaled, mean(scaled, [0], true))
    return {
      loss: terms.reduce((a, b) => add(a, b)),
      mse,
      l0: mean(p.active),
      fvu: div(mse, maximum(mean(squares(off)), 1e-30)),
      fired: p.fired,
      ...(p.penalty ? { penalty: p.penalty } : {}),
      ...(aux ? { aux } : {}),
      ...(p.least ? { least: p.least } : {}),
    }
  }
}
