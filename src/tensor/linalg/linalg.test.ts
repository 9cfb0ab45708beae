/** Decompositions against values that scipy gives, identities, and closed forms. */
import { describe, expect, it } from 'vitest'
import {
  asDouble,
  choleskyFactor,
  type DoubleMatrix,
  doubleMatrix,
  leadingEigen,
  leastSquares,
  type RealMatrix,
  randomisedSvd,
  rangeErrorFactor,
  smallEigen,
  smallSvd,
  solveByCholesky,
  solveTriangular,
  tallQr,
  times,
} from './index.ts'
import reference from './linalg.reference.json' with { type: 'json' }

/** The recipe of the matrices, the same in the script that made the reference values. */
function recipe(rows: number, columns: number, phase = 0): DoubleMatrix {
  const data = Float64Array.from({ length: rows * columns }, (_, at) => {
    const [i, j] = [Math.floor(at / columns), at % columns]
    return Math.sin(0.7 * i * (j + 1) + phase) + Math.cos(1.3 * (i + 2) * j) / (1 + j)
  })
  return doubleMatrix(data, rows, columns)
}
/** The recipe with falling columns, so that singular values fall, too. */
function falling(rows: number, columns: number): DoubleMatrix {
  const { data } = recipe(rows, columns)
  return doubleMatrix(
    data.map((v, at) => v * 0.9 ** (at % columns)),
    rows,
    columns,
  )
}
const single = (a: DoubleMatrix) => ({ dtype: 'float32' as const, shape: a.shape, data: Float32Array.from(a.data) })
const close = (have: ArrayLike<number>, want: ArrayLike<number>, tolerance: number) => {
  expect(have.length).toBe(want.length)
  let [worst, scale] = [0, 0]
  for (let i = 0; i < want.length; i++) {
    worst = Math.max(worst, Math.abs((have[i] as number) - (want[i] as number)))
    scale = Math.max(scale, Math.abs(want[i] as number))
  }
  expect(worst / scale).toBeLessThan(tolerance)
}
async function orthonormality(q: DoubleMatrix): Promise<number> {
  const k = q.shape[1] as number
  const g = await times(q, q, { transA: true })
  return Math.max(...g.data.map((v, at) => Math.abs(v - (Math.floor(at / k) === at % k ? 1 : 0))))
}
/** A symmetric matrix with known eigenvalues: a product of reflections on either side of a diagonal. */
function withEigenvalues(values: readonly number[]): DoubleMatrix {
  const n = values.length
  const a = new Float64Array(n * n)
  for (let i = 0; i < n; i++) a[i * n + i] = values[i] as number
  for (const phase of [0.3, 1.7]) {
    const w = Float64Array.from({ length: n }, (_, i) => Math.sin(phase * (i + 1)) + 0.1)
    const norm = w.reduce((s, x) => s + x * x, 0)
    for (const side of ['rows', 'columns'] as const)
      for (let i = 0; i < n; i++) {
        const at = (j: number) => (side === 'rows' ? i * n + j : j * n + i)
        let dot = 0
        for (let j = 0; j < n; j++) dot += (a[at(j)] as number) * (w[j] as number)
        for (let j = 0; j < n; j++) a[at(j)] = (a[at(j)] as number) - (2 * dot * (w[j] as number)) / norm
      }
  }
  return doubleMatrix(a, n, n)
}

describe('small decompositions', () => {
  it('equal scipy', () => {
    close(smallSvd(recipe(9, 6)).s, reference.smallSvd, 1e-12)
    const a = recipe(7, 7)
    const symmetric = doubleMatrix(
      a.data.map((v, at) => v + (a.data[(at % 7) * 7 + Math.floor(at / 7)] as number)),
      7,
      7,
    )
    const { values, vectors } = smallEigen(symmetric)
    close(values, reference.smallEigen, 1e-12)
    for (let c = 0; c < 7; c++) {
      const v = Array.from({ length: 7 }, (_, i) => vectors.data[i * 7 + c] as number)
      const image = v.map((_, i) => v.reduce((s, x, j) => s + (symmetric.data[i * 7 + j] as number) * x, 0))
      close(
        image,
        v.map((x) => x * (values[c] as number)),
        1e-11,
      )
    }
  })
})

describe('tall QR', () => {
  it('is orthonormal and gives the matrix back, also where columns nearly or wholly depend on each other', async () => {
    const y = recipe(400, 20)
    for (let i = 0; i < 400; i++) {
      y.data[i * 20 + 7] = (y.data[i * 20 + 3] as number) + 1e-11 * Math.sin(i * i)
      y.data[i * 20 + 9] = 1e-9 * (y.data[i * 20 + 9] as number)
      y.data[i * 20 + 11] = (y.data[i * 20] as number) - (y.data[i * 20 + 1] as number)
    }
    const { q, r } = await tallQr(y)
    expect(await orthonormality(q)).toBeLessThan(1e-13)
    // Inverses of triangles as ill-conditioned as the columns cost two digits.
    close((await times(q, r)).data, y.data, 1e-11)
    expect(r.data.every((v, at) => at % 20 >= Math.floor(at / 20) || v === 0)).toBe(true)
  })
  it('refuses what is no number', async () => {
    await expect(tallQr(doubleMatrix(Float64Array.of(1, Number.NaN, 2, 3), 2, 2))).rejects.toThrow(/infinite or none/)
    await expect(tallQr({ dtype: 'float64', shape: [3], data: new Float64Array(3) })).rejects.toThrow(/\[rows, columns\]/)
  })
})

describe('randomised SVD', () => {
  it('finds the triplets of scipy in either precision and either shape', async () => {
    for (const [a, want] of [
      [falling(300, 120), reference.tall],
      [falling(80, 250), reference.wide],
    ] as const)
      for (const [matrix, tolerance] of [
        [a, 1e-9],
        [single(a), 1e-5],
      ] as const) {
        const { u, s, v, residual } = await randomisedSvd(matrix as RealMatrix, { rank: 6, iterations: 8, oversampling: 20, seed: 3 })
        close(s, want.s.slice(0, 6), tolerance)
        expect(residual / want.residual6 - 1).toBeLessThan(1e-4)
        expect(await orthonormality(u)).toBeLessThan(1e-10)
        expect(await orthonormality(v)).toBeLessThan(1e-10)
        const image = await times(asDouble(matrix as RealMatrix), v)
        close(
          image.data,
          u.data.map((x, at) => x * (s[at % 6] as number)),
          10 * tolerance ** 0.5,
        )
      }
  })
  it('is exact where the rank is reached, repeats by seed, and holds its bound', async () => {
    const low = await times(recipe(200, 5), recipe(5, 90, 1))
    const exact = await randomisedSvd(low, { rank: 5, seed: 1, iterations: 0 })
    expect(exact.residual / Math.hypot(...exact.s)).toBeLessThan(1e-7)
    close(
      (
        await times(
          doubleMatrix(
            exact.u.data.map((x, at) => x * (exact.s[at % 5] as number)),
            200,
            5,
          ),
          exact.v,
          { transB: true },
        )
      ).data,
      low.data,
      1e-12,
    )
    const a = falling(300, 120)
    const one = await randomisedSvd(a, { rank: 8, seed: 5 })
    expect((await randomisedSvd(a, { rank: 8, seed: 5 })).u.data).toEqual(one.u.data)
    expect((await randomisedSvd(a, { rank: 8, seed: 6 })).u.data).not.toEqual(one.u.data)
    const settings = { rank: 8, oversampling: 10, iterations: 1, seed: 2 }
    const { u } = await randomisedSvd(a, settings)
    const projected = await times(u, await times(u, a, { transA: true }))
    const left = smallSvd(
      doubleMatrix(
        a.data.map((v, i) => v - (projected.data[i] as number)),
        300,
        120,
      ),
    ).s[0] as number
    expect(left).toBeGreaterThanOrEqual((reference.tall.s[8] as number) * (1 - 1e-12))
    expect(left).toBeLessThan((reference.tall.s[8] as number) * rangeErrorFactor({ ...settings, rows: 300, columns: 120 }))
    // k = 8, p = 10, q = 1: (1 + √(8/9) + e·√18/10 · √112)^(1/3)
    expect(rangeErrorFactor({ ...settings, rows: 300, columns: 120 })).toBeCloseTo(2.4186, 3)
  })
  it('refuses a rank that the matrix has not', async () => {
    await expect(randomisedSvd(recipe(5, 4), { rank: 5, seed: 0 })).rejects.toThrow(/from 1 to 4/)
    await expect(randomisedSvd(recipe(5, 4), { rank: 2, seed: 0.5 })).rejects.toThrow(/seed/)
  })
})

describe('eigenpairs', () => {
  const known = Array.from({ length: 300 }, (_, i) => (i < 5 ? 10 - i : i > 295 ? -12 - 0.5 * (i - 296) : Math.cos(i)))
  it('at each end are those that were put in', async () => {
    const a = withEigenvalues(known)
    const sorted = known.toSorted((x, y) => y - x)
    const cases = [
      ['largest', sorted.slice(0, 4)],
      ['smallest', sorted.slice(-4).reverse()],
      ['magnitude', sorted.toSorted((x, y) => Math.abs(y) - Math.abs(x)).slice(0, 6)],
    ] as const
    for (const [which, want] of cases) {
      const found = await leadingEigen(a, { count: want.length, which, seed: 4 })
      expect(found.rounds).toBeGreaterThan(0)
      close(found.values, want, 1e-10)
      expect(await orthonormality(found.vectors)).toBeLessThan(1e-10)
      expect(Math.max(...found.residuals)).toBeLessThan(2e-9)
    }
    const rough = await leadingEigen(single(a), { count: 4, seed: 4 })
    close(rough.values, sorted.slice(0, 4), 1e-5)
    close((await leadingEigen(a, { count: 70, seed: 4 })).values, sorted.slice(0, 70), 1e-10)
  })
  it('say when they do not settle', async () => {
    await expect(
      leadingEigen(withEigenvalues(Array.from({ length: 300 }, (_, i) => 1 - i * 1e-9)), {
        count: 3,
        seed: 1,
        maxRounds: 2,
        tolerance: 1e-15,
      }),
    ).rejects.toThrow(/did not settle in 2 rounds/)
  })
})

describe('Cholesky and triangles', () => {
  const n = 500
  const a = withEigenvalues(Array.from({ length: n }, (_, i) => 1 + (i % 40)))
  it('give the matrix and the solutions back, across blocks', async () => {
    const l = await choleskyFactor(a)
    expect(l.data.every((v, at) => at % n <= Math.floor(at / n) || v === 0)).toBe(true)
    close((await times(l, l, { transB: true })).data, a.data, 1e-13)
    const x = recipe(n, 3)
    close((await solveByCholesky(l, await times(a, x))).data, x.data, 1e-12)
    close((await solveTriangular(l, await times(l, x))).data, x.data, 1e-11)
    close((await solveTriangular(l, await times(l, x, { transA: true }), { transposed: true })).data, x.data, 1e-11)
    const rough = await choleskyFactor(single(a))
    expect(rough.dtype).toBe('float32')
    close((await times(rough, rough, { transB: true })).data, a.data, 1e-5)
  })
  it('equal scipy on a small matrix', async () => {
    const b = recipe(8, 5)
    const g = await times(b, b, { transA: true })
    close((await choleskyFactor(g)).data, reference.cholesky, 1e-13)
  })
  it('refuse what is not positive definite, not square, or singular', async () => {
    const bad = doubleMatrix(
      a.data.map((v, at) => (at === 300 * n + 300 ? -1 : v)),
      n,
      n,
    )
    await expect(choleskyFactor(bad)).rejects.toThrow(/pivot of row 300 of 500/)
    await expect(choleskyFactor(recipe(3, 2))).rejects.toThrow(/must be square/)
    await expect(solveTriangular(doubleMatrix(Float64Array.of(1, 0, 1, 0), 2, 2), recipe(2, 1))).rejects.toThrow(/zero on its diagonal/)
    await expect(solveTriangular(doubleMatrix(Float64Array.of(1, 0, 1, 1), 2, 2), recipe(3, 1))).rejects.toThrow(/right side must be/)
  })
})

describe('least squares', () => {
  it('equals scipy, with and without a ridge, also where the problem is ill-conditioned', async () => {
    const a = recipe(60, 6)
    const b = recipe(60, 2, 2)
    const plain = await leastSquares(a, b)
    close(plain.x.data, reference.leastSquares.x, 1e-12)
    close(plain.residuals, reference.leastSquares.residuals, 1e-12)
    close((await leastSquares(a, b, { ridge: 3 })).x.data, reference.leastSquares.ridge3, 1e-12)
    const hard = doubleMatrix(
      Float64Array.from({ length: 40 * 7 }, (_, at) => (Math.floor(at / 7) / 40) ** (at % 7)),
      40,
      7,
    )
    close((await leastSquares(hard, recipe(40, 1))).x.data, reference.leastSquares.polynomial, 1e-9)
    await expect(leastSquares(await times(recipe(60, 3), recipe(3, 6)), b)).rejects.toThrow(/larger ridge/)
  })
})
