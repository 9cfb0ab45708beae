/** @file Minimisers turned inside out: they name a point, are fed value and gradient there, and name the next one; so many can share a pass over the data. */

/** A minimiser on its way. */
export interface Stepper {
  /** The point at which value and gradient are wanted; the result once it is done. */
  readonly point: Float64Array
  readonly done: boolean
  feed(value: number, gradient: Float64Array): void
  /** Replaces the approximate inverse of the curvature, where the method uses one. */
  precondition?(inverse: (gradient: Float64Array) => Float64Array): void
}

/** Settings of {@link lbfgs}. */
export interface LbfgsOptions {
  readonly size: number
  /** Approximate inverse of the curvature. */
  readonly precondition: (gradient: Float64Array) => Float64Array
  /** Largest coordinate of the gradient at which it is done. */
  readonly tolerance: number
  /** Steps that are remembered (default 10). */
  readonly memory?: number
}

const dot = (a: Float64Array, b: Float64Array) => {
  let sum = 0
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number)
  return sum
}
const largest = (a: Float64Array) => {
  let most = 0
  for (const v of a) most = Math.max(most, Math.abs(v))
  return most
}
const along = (a: Float64Array, t: number, b: Float64Array) => Float64Array.from(a, (v, i) => v + t * (b[i] as number))

/** Preconditioned L-BFGS with backtracking (Nocedal & Wright 2006, algorithm 7.4), from zero. */
export function lbfgs({ size, precondition, tolerance, memory = 10 }: LbfgsOptions): Stepper {
  let pairs: { s: Float64Array; y: Float64Array; rho: number }[] = []
  let inverse = precondition
  let base: { x: Float64Array; value: number; gradient: Float64Array } | undefined
  let direction = new Float64Array(size)
  let length = 1
  const self = {
    point: new Float64Array(size),
    done: false,
    feed,
    precondition(better: typeof precondition) {
      inverse = better
      pairs = []
    },
  }

  function descent(gradient: Float64Array): Float64Array<ArrayBuffer> {
    let q = Float64Array.from(gradient)
    const factors: number[] = []
    for (const { s, y, rho } of pairs.toReversed()) {
      const factor = rho * dot(s, q)
      factors.unshift(factor)
      q = along(q, -factor, y)
    }
    let r = Float64Array.from(inverse(q))
    const newest = pairs.at(-1)
    // How long a step should be, the last one tells better than an estimate.
    if (newest) {
      const stretch = 1 / (newest.rho * dot(newest.y, inverse(newest.y)))
      r = r.map((v) => v * stretch)
    }
    for (const [i, { s, y, rho }] of pairs.entries()) r = along(r, (factors[i] as number) - rho * dot(y, r), s)
    return r.map((v) => -v)
  }

  function feed(value: number, gradient: Float64Array): void {
    if (base && !(value <= base.value + 1e-4 * length * dot(base.gradient, direction))) {
      length /= 2
      // Float32 scores have no further digits to give: the best point so far is the result.
      if (length < 1e-4) {
        self.point = base.x as Float64Array<ArrayBuffer>
        self.done = true
      } else self.point = along(base.x, length, direction)
      return
    }
    if (base) {
      const s = along(self.point, -1, base.x)
      const y = along(gradient, -1, base.gradient)
      const product = dot(s, y)
      if (product > 1e-12 * dot(y, y)) pairs.push({ s, y, rho: 1 / product })
      if (pairs.length > memory) pairs.shift()
    }
    base = { x: self.point, value, gradient }
    if (largest(gradient) <= tolerance) {
      self.done = true
      return
    }
    direction = descent(gradient)
    length = 1
    self.point = along(base.x, 1, direction)
  }
  return self
}

/** Settings of {@link proximal}. */
export interface ProximalOptions {
  readonly size: number
  /** An upper bound of the curvature. */
  readonly lipschitz: number
  readonly l1: number
  /** 1 where the L1 penalty holds. */
  readonly penalised: Uint8Array
  readonly tolerance: number
}

/** Accelerated proximal gradient with restarts for an L1 penalty (Beck & Teboulle 2009; O'Donoghue & Candès 2015), from zero. */
export function proximal({ size, lipschitz, l1, penalised, tolerance }: ProximalOptions): Stepper {
  let x = new Float64Array(size)
  let momentum = 1
  const self = { point: x, done: false, feed }
  function feed(_value: number, gradient: Float64Array): void {
    const from = self.point
    const next = from.map((v, i) => {
      const moved = v - (gradient[i] as number) / lipschitz
      if (penalised[i] === 0) return moved
      return Math.sign(moved) * Math.max(0, Math.abs(moved) - l1 / lipschitz)
    })
    if (lipschitz * largest(along(next, -1, from)) <= tolerance) {
      self.point = next
      self.done = true
      return
    }
    const back = along(from, -1, next)
    const step = along(next, -1, x)
    if (dot(back, step) > 0) momentum = 1
    const grown = (1 + Math.sqrt(1 + 4 * momentum * momentum)) / 2
    self.point = along(next, (momentum - 1) / grown, step)
    momentum = grown
    x = next
  }
  return self
}
