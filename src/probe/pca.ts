/** @file Principal components of what a probe learns from, before any kind of probe. */
import { EigenvalueDecomposition, Matrix } from 'ml-matrix'
import { UsageError } from '../base/errors.ts'
import { randomStream } from '../models/sampling.ts'
import type { FitTask, KindRow } from './kinds.ts'
import { centred, type Features, gramOf, type LinearFit, scoresOf } from './solver.ts'

/** Leading components of features, and where they are measured from. */
export interface Components {
  /** [width, count], orthonormal columns. */
  readonly basis: Float32Array
  readonly count: number
  readonly mean: Float64Array
  /** Variance along each, largest first. */
  readonly variances: Float64Array
}

const rounds = 60

/** Leading principal components by subspace iteration on the Gram matrix, from a fixed start. */
export async function principalComponents(features: Features, count: number): Promise<Components> {
  const { x, mean } = await centred(features, false)
  const [n, d] = x.shape as [number, number]
  if (!(Number.isInteger(count) && count > 0 && count <= Math.min(n - 1, d)))
    throw new UsageError(
      `${n} examples of ${d} features have ${Math.min(n - 1, d)} principal components, so there are no ${count}; ask for fewer.`,
    )
  const gram = await gramOf(x)
  const square: Features = { dtype: 'float32', shape: [d, d], data: Float32Array.from(gram.data) }
  // A few more than wanted, so that those at the edge settle soon.
  const kept = Math.min(d, count + 8)
  const random = randomStream(1)
  let basis = orthonormal(
    Float64Array.from({ length: d * kept }, () => random() - 0.5),
    d,
    kept,
  )
  let values = new Float64Array(kept)
  for (let round = 0; round < rounds; round++) {
    const image = Float64Array.from(await scoresOf(square, Float32Array.from(basis), kept))
    const small = new Matrix(kept, kept)
    for (let a = 0; a < kept; a++)
      for (let b = 0; b < kept; b++) {
        let sum = 0
        for (let j = 0; j < d; j++) sum += (basis[j * kept + a] as number) * (image[j * kept + b] as number)
        small.set(a, b, sum)
      }
    const found = new EigenvalueDecomposition(small.add(small.transpose()).mul(0.5), { assumeSymmetric: true })
    const order = found.realEigenvalues
      .map((_, i) => i)
      .sort((a, b) => (found.realEigenvalues[b] as number) - (found.realEigenvalues[a] as number))
    const next = Float64Array.from(order, (i) => found.realEigenvalues[i] as number)
    const turned = new Float64Array(d * kept)
    for (let j = 0; j < d; j++)
      for (const [c, i] of order.entries()) {
        let sum = 0
        for (let a = 0; a < kept; a++) sum += (image[j * kept + a] as number) * found.eigenvectorMatrix.get(a, i)
        turned[j * kept + c] = sum
      }
    basis = orthonormal(turned, d, kept)
    const moved = Math.max(...next.subarray(0, count).map((v, i) => Math.abs(v - (values[i] as number))))
    values = next
    if (moved < 1e-6 * (next[0] as number)) break
  }
  const out = new Float32Array(d * count)
  for (let j = 0; j < d; j++) for (let c = 0; c < count; c++) out[j * count + c] = basis[j * kept + c] as number
  return { basis: out, count, mean, variances: values.slice(0, count).map((v) => v / n) }
}

/** Columns made orthonormal, twice, because once leaves rounding errors. */
function orthonormal(columns: Float64Array, d: number, count: number): Float64Array<ArrayBuffer> {
  const out = Float64Array.from(columns)
  for (let pass = 0; pass < 2; pass++)
    for (let c = 0; c < count; c++) {
      for (let b = 0; b < c; b++) {
        let dot = 0
        for (let j = 0; j < d; j++) dot += (out[j * count + c] as number) * (out[j * count + b] as number)
        for (let j = 0; j < d; j++) out[j * count + c] = (out[j * count + c] as number) - dot * (out[j * count + b] as number)
      }
      let length = 0
      for (let j = 0; j < d; j++) length += (out[j * count + c] as number) ** 2
      length = Math.sqrt(length)
      for (let j = 0; j < d; j++) out[j * count + c] = length > 0 ? (out[j * count + c] as number) / length : 0
    }
  return out
}

/** A kind that sees only the leading components of the examples that it learns from; its weights are given back in the features. */
export function withComponents(row: KindRow, count: number): KindRow {
  return {
    ...row,
    async fit(x, tasks, options) {
      const groups = new Map<string, number[]>()
      for (const [i, { weights }] of tasks.entries()) {
        const key = Array.from(weights, (w) => (w === 0 ? '0' : '1')).join('')
        groups.set(key, [...(groups.get(key) ?? []), i])
      }
      const fits = new Array<LinearFit>(tasks.length)
      for (const members of groups.values()) {
        const components = await principalComponents(rowsOf(x, (tasks[members[0] as number] as FitTask).weights), count)
        const found = await row.fit(
          await projected(x, components),
          members.map((i) => tasks[i] as FitTask),
          options,
        )
        for (const [at, i] of members.entries()) fits[i] = unprojected(found[at] as LinearFit, components)
      }
      return fits
    },
  }
}

function rowsOf({ shape, data }: Features, weights: Float64Array): Features {
  const d = shape[1] as number
  const used = Array.from(weights.keys()).filter((i) => weights[i] !== 0)
  const out = new Float32Array(used.length * d)
  for (const [r, i] of used.entries()) out.set(data.subarray(i * d, (i + 1) * d), r * d)
  return { dtype: 'float32', shape: [used.length, d], data: out }
}

async function projected({ shape, data }: Features, { basis, count, mean }: Components): Promise<Features> {
  const [n, d] = shape as [number, number]
  const moved = new Float32Array(n * d)
  for (let at = 0; at < moved.length; at++) moved[at] = (data[at] as number) - (mean[at % d] as number)
  return { dtype: 'float32', shape: [n, count], data: await scoresOf({ dtype: 'float32', shape: [n, d], data: moved }, basis, count) }
}

function unprojected({ weights, bias, passes }: LinearFit, { basis, count, mean }: Components): LinearFit {
  const d = mean.length
  const wide = new Float64Array(bias.length * d)
  const moved = Float64Array.from(bias)
  for (let k = 0; k < bias.length; k++)
    for (let j = 0; j < d; j++) {
      let sum = 0
      for (let c = 0; c < count; c++) sum += (basis[j * count + c] as number) * (weights[k * count + c] as number)
      wide[k * d + j] = sum
      moved[k] = (moved[k] as number) - sum * (mean[j] as number)
    }
  return { weights: wide, bias: moved, passes }
}
