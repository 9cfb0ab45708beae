/**
 * Linear fits against scikit-learn 1.9.1 and SciPy (tolerance 1e-10) on the features below, made with the same formulas in NumPy.
 * `squared hinge` is SciPy's minimum of ½‖w‖² + C · Σ max(0, 1 − t·s)², whose intercept is free as ours is.
 */
import { expect, it } from 'vitest'
import { type FitTask, probeKinds, type Regularisation } from './kinds.ts'
import type { Features, LinearFit } from './solver.ts'

const [n, d] = [120, 6]
const data = Float32Array.from({ length: n * d }, (_, at) => {
  const [i, j] = [Math.floor(at / d), at % d]
  return Math.sin(12.9898 * i + 78.233 * j + 0.7 * i * j) * (1 + j / 4) + j
})
const x: Features = { dtype: 'float32', shape: [n, d], data }
const scores = Float64Array.from(
  { length: n },
  (_, i) => (data[i * d] as number) - (data[i * d + 2] as number) / 2 + Math.cos(3.1 * i) * 0.8,
)
const sorted = [...scores].sort((a, b) => a - b)
/** NumPy's quantile, which interpolates. */
const quantile = (q: number) => {
  const at = q * (n - 1)
  const low = Math.floor(at)
  return (sorted[low] as number) + (at - low) * ((sorted[Math.min(n - 1, low + 1)] as number) - (sorted[low] as number))
}
const halves = scores.map((s) => (s > quantile(0.5) ? 1 : 0))
const thirds = scores.map((s) => (s >= quantile(1 / 3) ? 1 : 0) + (s >= quantile(2 / 3) ? 1 : 0))

type Kind = keyof typeof probeKinds
async function solved(
  kind: Kind,
  targets: Float64Array,
  classes: number,
  regularisation: Partial<Regularisation>,
  weights = new Float64Array(n).fill(1),
) {
  const task: FitTask = { weights, targets, classes, regularisation: { C: 1, standardise: false, ...regularisation } }
  const [found] = (await probeKinds[kind].fit(x, [task], { tolerance: 1e-7 })) as [LinearFit]
  return found
}

const close = (have: ArrayLike<number>, want: readonly number[], within = 2e-4) => {
  expect(have.length).toBe(want.length)
  for (const [i, v] of want.entries())
    expect(Math.abs((have[i] as number) - v), `${i}: ${have[i]} against ${v}`).toBeLessThan(within * Math.max(1, Math.abs(v)))
}

it('finds the L2, standardised, weighted and softmax logistic regressions of scikit-learn', async () => {
  const l2 = await solved('logistic', halves, 2, { C: 0.5 })
  close([...l2.weights, ...l2.bias], [1.965553, -0.013069, -1.07297, -0.024751, 0.112511, 0.113394, 1.234868])
  const scaled = await solved('logistic', halves, 2, { C: 0.5, standardise: true })
  close([...scaled.weights, ...scaled.bias], [2.230013, -0.010821, -1.13946, -0.024095, 0.121774, 0.111976, 1.337529])
  const soft = await solved('logistic', thirds, 3, { C: 0.5 })
  const want = [
    -1.703719, 0.046621, 0.908461, 0.023901, -0.129247, 0.076746, -0.064842, -0.024599, 0.047201, -0.041542, 0.027695, -0.0544, 1.768561,
    -0.022022, -0.955662, 0.017641, 0.101552, -0.022346,
  ]
  close(soft.weights, want, 5e-4)
  // Only differences of the biases mean something.
  close(
    soft.bias.map((b) => b - (soft.bias[0] as number)),
    [0, 2.649216, 3.351057],
    1e-3,
  )
  const rare = scores.map((s) => (s > quantile(0.8) ? 1 : 0))
  const counts = [0, 1].map((k) => rare.filter((t) => t === k).length) as [number, number]
  const weights = rare.map((t) => n / (2 * (counts[t] as number)))
  const balanced = await solved('logistic', rare, 2, { C: 0.5 }, weights)
  close([...balanced.weights, ...balanced.bias], [2.302059, 0.104891, -0.873407, 0.021142, 0.165667, 0.123077, -0.66953], 5e-4)
})

it('finds the L1 and elastic ones, with the same zeros', async () => {
  const l1 = await solved('logistic', halves, 2, { C: 0.2, l1Ratio: 1 })
  close([...l1.weights, ...l1.bias], [1.670739, 0, -0.827319, 0, 0, 0.011801, 1.604514], 5e-4)
  expect([1, 3, 4].map((j) => Math.abs(l1.weights[j] as number))).toEqual([0, 0, 0])
  const elastic = await solved('logistic', halves, 2, { C: 0.2, l1Ratio: 0.5 })
  close([...elastic.weights, ...elastic.bias], [1.528062, 0, -0.815706, 0, 0.010641, 0.054884, 1.323209], 5e-4)
})

it('finds ridge, regression, squared hinge and LDA', async () => {
  const ridge = await solved('ridge', halves, 2, { C: 0.5 })
  close([...ridge.weights, ...ridge.bias], [0.779522, -0.009734, -0.365737, -0.000727, 0.005739, 0.038482, 0.530058])
  const regression = await solved('regression', scores, 0, { C: 0.5 })
  close([...regression.weights, ...regression.bias], [0.965653, 0.005892, -0.500846, 0.010827, 0.090968, 0.002891, -0.411234])
  const svm = await solved('svm', halves, 2, { C: 0.5 })
  close([...svm.weights, ...svm.bias], [1.019564, -0.001371, -0.520981, -0.02061, 0.071302, 0.05764, 0.542505])
  const lda = await solved('lda', halves, 2, { shrinkage: 0 })
  close([...lda.weights, ...lda.bias], [3.088987, -0.03782, -1.423137, -0.003216, 0.022499, 0.148411, 2.069577])
  const three = await solved('lda', thirds, 3, { shrinkage: 0 })
  const difference = Float64Array.from({ length: d }, (_, j) => (three.weights[2 * d + j] as number) - (three.weights[j] as number))
  close(difference, [
    0.853511 + 5.222817,
    1.250132 - 1.401082,
    1.475715 - 4.240265,
    2.009218 - 2.081067,
    2.038612 - 1.911045,
    2.011524 - 2.136098,
  ])
  expect((three.bias[2] as number) - (three.bias[0] as number)).toBeCloseTo(21.076741 - 15.17246, 3)
})

it('gives many problems together what it gives each alone, leaves out what has no weight, and the mean difference in closed form', async () => {
  const part = Float64Array.from({ length: n }, (_, i) => (i % 3 === 0 ? 0 : 1))
  const task = (weights: Float64Array, C: number): FitTask => ({
    weights,
    targets: halves,
    classes: 2,
    regularisation: { C, standardise: true },
  })
  const tasks = [task(part, 1), task(new Float64Array(n).fill(1), 0.01), task(part, 10)]
  const together = await probeKinds.logistic.fit(x, tasks, { tolerance: 1e-7 })
  for (const [i, t] of tasks.entries()) {
    const [alone] = (await probeKinds.logistic.fit(x, [t], { tolerance: 1e-7 })) as [LinearFit]
    close(together[i]?.weights as Float64Array, [...alone.weights], 1e-4)
  }
  const kept = Array.from(part.keys()).filter((i) => part[i] === 1)
  const small: Features = {
    dtype: 'float32',
    shape: [kept.length, d],
    data: Float32Array.from(kept.flatMap((i) => [...data.subarray(i * d, (i + 1) * d)])),
  }
  const targets = Float64Array.from(kept, (i) => halves[i] as number)
  const same = { targets, weights: new Float64Array(kept.length).fill(1), classes: 2, regularisation: { C: 1, standardise: true } }
  const [without] = (await probeKinds.logistic.fit(small, [same], { tolerance: 1e-7 })) as [LinearFit]
  close(together[0]?.weights as Float64Array, [...without.weights], 1e-4)
  const centre = await solved('mean-difference', halves, 2, {})
  const means = [0, 1].map((k) =>
    Array.from({ length: d }, (_, j) => {
      const own = Array.from(halves.keys()).filter((i) => halves[i] === k)
      return own.reduce((sum, i) => sum + (data[i * d + j] as number), 0) / own.length
    }),
  ) as [number[], number[]]
  close(
    centre.weights,
    means[1].map((v, j) => v - (means[0][j] as number)),
    1e-6,
  )
  // The threshold lies halfway between the means.
  const halfway = means[0].reduce((sum, v, j) => sum + ((v + (means[1][j] as number)) / 2) * (centre.weights[j] as number), 0)
  expect(halfway + (centre.bias[0] as number)).toBeCloseTo(0, 6)
})

it('copes with features of huge means, features that never change, features that move together, and more features than examples', async () => {
  const wide = 200
  const odd = Float32Array.from({ length: n * wide }, (_, at) => {
    const [i, j] = [Math.floor(at / wide), at % wide]
    if (j === 0) return 5000 + (data[i * d] as number)
    if (j === 1) return 3
    // All others are nearly one and the same feature.
    return (data[i * d + 2] as number) + 1e-3 * Math.sin(i * j)
  })
  const features: Features = { dtype: 'float32', shape: [n, wide], data: odd }
  for (const standardise of [true, false]) {
    const task: FitTask = { weights: new Float64Array(n).fill(1), targets: halves, classes: 2, regularisation: { C: 1, standardise } }
    const [found] = (await probeKinds.logistic.fit(features, [task], {})) as [LinearFit]
    const right = Array.from(halves.keys()).filter((i) => {
      let s = found.bias[0] as number
      for (let j = 0; j < wide; j++) s += (found.weights[j] as number) * (odd[i * wide + j] as number)
      return s > 0 === (halves[i] === 1)
    })
    expect(right.length / n).toBeGreaterThan(0.75)
    expect(found.passes).toBeLessThan(200)
    expect([...found.weights].every(Number.isFinite)).toBe(true)
  }
})
