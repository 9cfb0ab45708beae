/** @file Checks of a loaded model on a few tokens: identities that hold whatever the weights are, so that a wrong reading shows before a user sees it. */
import { ModelError } from '../base/errors.ts'
import type { Activation, BlockSpec, DecoderSpec } from './spec.ts'
import { hasMlp } from './spec.ts'

/** Values of a site: row-major numbers with their axes' lengths. */
export interface SiteValues {
  readonly shape: readonly number[]
  readonly data: Float32Array
}

/** Runs the model on one row of token ids and reads sites of it. */
export type SelfCheckRun = (ids: readonly number[], sites: readonly string[]) => Promise<Readonly<Record<string, SiteValues>>>

/** Tokens of the checks: enough for attention to choose among some. */
const LENGTH = 6
/** Largest difference that float32 explains, by the scale of the values. */
const TOLERANCE = 1e-4

/**
 * Checks the residual identity of every block, attention patterns, and mixed values and neurons of one block.
 * @returns what was checked, as sentences.
 * @throws ModelError naming the site at which an identity does not hold.
 */
export async function selfCheck(spec: DecoderSpec, run: SelfCheckRun): Promise<string[]> {
  const ids = Array.from({ length: Math.min(LENGTH, spec.maxPositions) }, (_, i) => ((i + 1) * 7919) % spec.vocab)
  const layers = Array.from({ length: spec.layers }, (_, i) => i)
  const adding = layers.filter((l) => addsUp(spec.block(l)))
  const patterns = [...new Set([0, spec.layers - 1])]
  const dense = layers.find((l) => hasMlp(spec, l) && spec.block(l).mlp.kind !== 'experts')
  const sites = [
    ...adding.flatMap((l) => [
      `resid_pre.${l}`,
      `attn_out_post.${l}`,
      ...(hasMlp(spec, l) ? [`mlp_out_post.${l}`] : []),
      `resid_post.${l}`,
    ]),
    ...patterns.map((l) => `attn_probs.${l}`),
    'v.0',
    'z.0',
    ...(dense === undefined ? [] : [`mlp_pre.${dense}`, `mlp_act.${dense}`, ...(isGated(spec, dense) ? [`mlp_pre_linear.${dense}`] : [])]),
    'logits',
  ]
  const values = await run(ids, sites)
  const at = (site: string) => {
    const v = values[site]
    if (!v) throw new ModelError(`The self-check could not read the site '${site}'.`)
    if (!v.data.every((x) => Number.isFinite(x))) throw failure(site, 'holds values that are not finite')
    return v.data
  }
  at('logits')
  for (const l of adding) {
    const [pre, attn] = [at(`resid_pre.${l}`), at(`attn_out_post.${l}`)]
    const mlp = hasMlp(spec, l) ? at(`mlp_out_post.${l}`) : pre.map(() => 0)
    compare(
      `resid_post.${l}`,
      at(`resid_post.${l}`),
      pre.map((x, i) => x + (attn[i] as number) + (mlp[i] as number)),
      'is not resid_pre + attn_out_post + mlp_out_post',
    )
  }
  for (const l of patterns) checkPattern(`attn_probs.${l}`, at(`attn_probs.${l}`), ids.length, spec.block(l).attention.window)
  compare(
    'z.0',
    at('z.0'),
    mixed(spec, at('attn_probs.0'), clamped(at('v.0'), spec.block(0).attention.clip), ids.length),
    'is not what attn_probs make of v',
  )
  const said = [
    ...(adding.length > 0 ? [`in ${adding.length} of ${spec.layers} blocks the residual stream is the sum of what was added to it`] : []),
    'attention rows sum to one and look at no later token',
    'z of the first block is recomputed from attn_probs and v',
  ]
  if (dense !== undefined) {
    const up = isGated(spec, dense) ? at(`mlp_pre_linear.${dense}`) : undefined
    const act = activations[activationOf(spec.block(dense))]
    const neurons = at(`mlp_pre.${dense}`).map((x, i) => act(x) * (up ? (up[i] as number) : 1))
    compare(`mlp_act.${dense}`, at(`mlp_act.${dense}`), neurons, 'is not the activation of mlp_pre')
    said.push(`neurons of block ${dense} are recomputed from their pre-activations`)
  }
  return said
}

/** Whether a block's output is the sum of its input and its contributions. */
const addsUp = (b: BlockSpec) => !b.attnSumNorm && !b.mlpSumNorm

const isGated = (spec: DecoderSpec, layer: number) => spec.block(layer).mlp.kind === 'gated'
const activationOf = ({ mlp }: BlockSpec): Activation => (mlp.kind === 'plain' || mlp.kind === 'gated' ? mlp.activation : 'silu')

const failure = (site: string, what: string) =>
  new ModelError(
    `The model does not pass its self-check: ${site} ${what}. Its config and weights may belong to different models; please report it if they do not.`,
  )

function compare(site: string, ours: Float32Array, expected: Float32Array, what: string): void {
  let [error, top] = [0, 0]
  for (const [i, x] of expected.entries()) {
    top = Math.max(top, Math.abs(x))
    error = Math.max(error, Math.abs(x - (ours[i] as number)))
  }
  if (ours.length !== expected.length || !(error <= TOLERANCE * Math.max(top, 1e-30))) throw failure(site, what)
}

function checkPattern(site: string, probs: Float32Array, length: number, window: number | undefined): void {
  for (let row = 0; row < probs.length / length; row++) {
    const query = row % length
    let sum = 0
    for (let key = 0; key < length; key++) {
      const p = probs[row * length + key] as number
      sum += p
      const hidden = key > query || (window !== undefined && key <= query - window)
      if (hidden && p !== 0) throw failure(site, `looks from position ${query} at ${key}, which must be hidden from it`)
    }
    if (Math.abs(sum - 1) > TOLERANCE) throw failure(site, 'has rows that do not sum to one')
  }
}

const clamped = (v: Float32Array, limit: number | undefined) => (limit ? v.map((x) => Math.min(Math.max(x, -limit), limit)) : v)

/** z [pos, head, d_head] from a pattern [head, query, key] and values [pos, kv_head, d_head]. */
function mixed({ heads, kvHeads, headDim }: DecoderSpec, probs: Float32Array, v: Float32Array, length: number): Float32Array {
  const z = new Float32Array(length * heads * headDim)
  for (let h = 0; h < heads; h++) {
    const kv = Math.floor(h / (heads / kvHeads))
    for (let query = 0; query < length; query++)
      for (let key = 0; key <= query; key++) {
        const p = probs[(h * length + query) * length + key] as number
        for (let i = 0; i < headDim; i++) {
          const to = (query * heads + h) * headDim + i
          z[to] = (z[to] as number) + p * (v[(key * kvHeads + kv) * headDim + i] as number)
        }
      }
  }
  return z
}

/** Gauss error function by its power series, which float64 sums well up to 4; beyond it is one to 1e-7. */
function erf(x: number): number {
  if (Math.abs(x) > 4) return Math.sign(x)
  let [term, sum] = [x, x]
  for (let n = 1; n < 80; n++) {
    term *= (-x * x) / n
    sum += term / (2 * n + 1)
  }
  return (2 / Math.sqrt(Math.PI)) * sum
}

const logistic = (x: number) => 1 / (1 + Math.exp(-x))

/** Activation functions in plain numbers, to recompute neurons by another way than the engine's. */
const activations: Readonly<Record<Activation, (x: number) => number>> = {
  silu: (x) => x * logistic(x),
  gelu: (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  quick_gelu: (x) => x * logistic(1.702 * x),
  relu: (x) => Math.max(x, 0),
  relu_squared: (x) => Math.max(x, 0) ** 2,
  tanh: Math.tanh,
  sigmoid: logistic,
}
