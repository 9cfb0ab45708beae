/** Sizes of large models: 4096 × 4096, by identities. */
import { expect, it } from 'vitest'
import { choleskyFactor, doubleMatrix, leadingEigen, randomisedSvd, solveByCholesky, times } from './index.ts'

const n = 4096
/** Numbers without a pattern, equal on every machine. */
function noise(count: number, seed: number): Float64Array {
  let s = seed
  return Float64Array.from({ length: count }, () => {
    s = (Math.imul(s, 1664525) + 1013904223) | 0
    return s / 2 ** 31
  })
}

it('a matrix of rank 12 and noise is decomposed', async () => {
  const [u, v] = [doubleMatrix(noise(n * 12, 1), n, 12), doubleMatrix(noise(n * 12, 2), n, 12)]
  const low = await times(u, v, { transB: true })
  const small = noise(n * n, 3)
  const a = { dtype: 'float32' as const, shape: [n, n], data: Float32Array.from(low.data, (x, i) => x + 0.01 * (small[i] as number)) }
  const began = performance.now()
  const found = await randomisedSvd(a, { rank: 12, iterations: 1, seed: 1 })
  console.info(`randomised SVD of ${n} × ${n}, rank 12: ${Math.round(performance.now() - began)} ms`)
  // Noise of variance 0.01² / 3 is left.
  expect(found.residual / (0.01 * n * Math.sqrt(1 / 3))).toBeCloseTo(1, 2)
  const image = await times(a, found.v)
  const worst = Math.max(...image.data.map((x, at) => Math.abs(x - (found.u.data[at] as number) * (found.s[at % 12] as number))))
  expect(worst / (found.s[0] as number)).toBeLessThan(1e-5)
}, 300_000)

it('a positive definite matrix is factorised, solved and its leading vectors found', async () => {
  const f = doubleMatrix(noise(n * 40, 5), n, 40)
  const a = await times(f, f, { transB: true })
  for (let i = 0; i < n; i++) a.data[i * n + i] = (a.data[i * n + i] as number) + 10
  let began = performance.now()
  const l = await choleskyFactor(a)
  console.info(`Cholesky of ${n} × ${n} in float64: ${Math.round(performance.now() - began)} ms`)
  const x = doubleMatrix(noise(n, 7), n, 1)
  const back = await solveByCholesky(l, await times(a, x))
  expect(Math.max(...back.data.map((v, i) => Math.abs(v - (x.data[i] as number))))).toBeLessThan(1e-10)
  began = performance.now()
  const found = await leadingEigen(a, { count: 20, seed: 1 })
  console.info(`20 eigenpairs of ${n} × ${n} in float64: ${Math.round(performance.now() - began)} ms, ${found.rounds} rounds`)
  expect(Math.max(...found.residuals) / (found.values[0] as number)).toBeLessThan(1e-10)
  // The rest of the spectrum is 10.
  expect(found.values.every((value) => value > 100)).toBe(true)
}, 300_000)
