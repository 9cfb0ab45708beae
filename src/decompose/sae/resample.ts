/** @file Resampling: latents that died are set to what is rebuilt worst (Bricken et al. 2023, "Towards Monosemanticity"). */
import type { NDArray } from '../../base/types.ts'
import type { SaeForm } from '../../models/sae/traced.ts'
import { saeWeights } from '../../models/sae/weights.ts'
import type { ParameterSet, RandomStream } from '../../nn/index.ts'
import { saeState } from './loss.ts'
import { Sae } from './sae.ts'

/** Length of a new encoder column, as a share of the mean of the living; among the k largest, a short one would never be. */
const encoderShare = { few: 1, any: 0.2 }

/** What a resampling reads and writes in place. */
export interface ResampleRequest {
  readonly parameters: ParameterSet
  /** States of the optimiser, by keys such as `adam/W_dec/mean`. */
  readonly states: Readonly<Record<string, NDArray<Float32Array>>>
  readonly form: SaeForm
  /** Whether only the largest activations of a row or a batch are kept. */
  readonly keepsLargest: boolean
  /** A batch, [rows, d_in], as the encoder sees it. */
  readonly x: NDArray<Float32Array>
  readonly dead: readonly number[]
  readonly random: RandomStream
}

/**
 * Sets each dead latent to an input that is drawn with probability in proportion to its squared error, squared: the decoder row is its
 * direction from b_dec, of the mean length of the living; the encoder column the same at a fifth of their length, or at all of it; the bias zero.
 * The optimiser forgets what it knew of them.
 */
export async function resample({ parameters, states, form, keepsLargest, x, dead, random }: ResampleRequest): Promise<void> {
  const [dec, enc] = [parameters.get('W_dec'), parameters.get('W_enc')]
  const [width, dIn] = dec.shape as [number, number]
  const weights = await drawWeights(parameters, form, x)
  const isDead = new Set(dead)
  const living = Array.from({ length: width }, (_, i) => i).filter((i) => !isDead.has(i))
  const mean = (length: (i: number) => number) => (living.length === 0 ? 1 : living.reduce((s, i) => s + length(i), 0) / living.length)
  const rowLength = mean((i) => Math.hypot(...dec.data.subarray(i * dIn, (i + 1) * dIn)))
  const columnLength =
    (keepsLargest ? encoderShare.few : encoderShare.any) *
    mean((i) => {
      let squares = 0
      for (let j = 0; j < dIn; j++) squares += (enc.data[j * width + i] as number) ** 2
      return Math.sqrt(squares)
    })
  const bias = parameters.get('b_dec').data
  for (const latent of dead) {
    const row = drawn(weights, random)
    const direction = Float64Array.from({ length: dIn }, (_, j) => (x.data[row * dIn + j] as number) - (bias[j] as number))
    const length = Math.hypot(...direction) || 1
    for (let j = 0; j < dIn; j++) {
      dec.data[latent * dIn + j] = ((direction[j] as number) * rowLength) / length
      enc.data[j * width + latent] = ((direction[j] as number) * columnLength) / length
    }
    for (const name of ['b_enc', 'b_gate', 'b_mag', 'r_mag']) if (parameters.has(name)) parameters.get(name).data[latent] = 0
    forget(states, latent, width, dIn)
  }
}

/** Clears the optimiser's numbers of one latent. Their arrays may be in pieces, but their order is the parameter's. */
function forget(states: ResampleRequest['states'], latent: number, width: number, dIn: number): void {
  for (const [key, { data }] of Object.entries(states)) {
    const name = key.split('/')[1] as string
    if (name === 'W_dec') data.fill(0, latent * dIn, (latent + 1) * dIn)
    else if (name === 'W_enc') for (let j = 0; j < dIn; j++) data[j * width + latent] = 0
    else if (data.length === width) data[latent] = 0
  }
}

/** Squared errors of the rows, squared, added up. */
async function drawWeights(parameters: ParameterSet, form: SaeForm, x: NDArray<Float32Array>): Promise<Float64Array> {
  const untrained = Object.values<string>(saeState)
  const tensors = Object.fromEntries([...parameters].filter(([name]) => !untrained.includes(name)))
  if (form.kind === 'jumprelu' && !tensors.threshold) {
    const { shape } = parameters.get('b_enc')
    const value = parameters.get(saeState.threshold).data[0] as number
    tensors.threshold = { dtype: 'float32', shape, data: new Float32Array(shape[0] as number).fill(value) }
  }
  await using sae = new Sae(saeWeights({ ...form, tensors }))
  const { data } = await sae.reconstruct(x)
  const rows = x.shape[0] as number
  const width = x.shape[1] as number
  const sums = new Float64Array(rows)
  let total = 0
  for (let r = 0; r < rows; r++) {
    let squares = 0
    for (let j = r * width; j < (r + 1) * width; j++) squares += ((x.data[j] as number) - (data[j] as number)) ** 2
    total += squares ** 2
    sums[r] = total
  }
  return sums
}

function drawn(sums: Float64Array, random: RandomStream): number {
  const at = random.next() * (sums.at(-1) as number)
  const found = sums.findIndex((s) => s > at)
  return found < 0 ? sums.length - 1 : found
}
