/** @file The small triangles inside blocked algorithms, in place and in double precision. */

/**
 * Turns a symmetric positive definite matrix [n, n] into its lower Cholesky factor, with zeros above; only the lower triangle is read.
 * Gives the index of the first pivot that is not above `floor`, or −1: what is behind it is then worthless.
 */
export function choleskyInPlace(a: Float64Array, n: number, floor = 0): number {
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let rest = a[i * n + j] as number
      for (let k = 0; k < j; k++) rest -= (a[i * n + k] as number) * (a[j * n + k] as number)
      if (i !== j) a[i * n + j] = rest / (a[j * n + j] as number)
      else if (rest > floor) a[i * n + i] = Math.sqrt(rest)
      else return i
    }
    a.fill(0, i * n + i + 1, (i + 1) * n)
  }
  return -1
}

/** The inverse of a lower triangle [n, n], itself one. */
export function invertLower(l: Float64Array, n: number): Float64Array {
  const out = new Float64Array(n * n)
  for (let i = 0; i < n; i++) {
    const pivot = l[i * n + i] as number
    for (let k = 0; k < i; k++) {
      const factor = l[i * n + k] as number
      if (factor === 0) continue
      for (let j = 0; j <= k; j++) out[i * n + j] = (out[i * n + j] as number) - factor * (out[k * n + j] as number)
    }
    for (let j = 0; j < i; j++) out[i * n + j] = (out[i * n + j] as number) / pivot
    out[i * n + i] = 1 / pivot
  }
  return out
}
