/** @file Optimisers that look at a parameter as a matrix: Adafactor and Muon. */
import { ShapeError } from '../base/errors.ts'
import { sizeOf } from '../base/types.ts'
import { add, div, matmul, maximum, mean, mul, reshape, sqrt, sub, sum, type Tensor, transpose } from '../tensor/index.ts'
import type { Optimizer, UpdateInput } from './optimizers.ts'

/** Settings of {@link adafactor}. */
export interface AdafactorOptions {
  /** The running means forget as step^beta2Decay. */
  readonly beta2Decay?: number
  /** Smallest squared gradient (as its root), and smallest scale of a parameter. */
  readonly eps?: readonly [number, number]
  /** Largest root mean square of an update before the learning rate. */
  readonly clip?: number
  readonly weightDecay?: number
}

const rms = (x: Tensor) => sqrt(mean(mul(x, x)))

/** Adafactor: squared gradients kept as a row and a column (Shazeer and Stern 2018), the numbers of `torch.optim.Adafactor`. */
export function adafactor({ beta2Decay = -0.8, eps = [2 ** -23, 1e-3], clip = 1, weightDecay = 0 }: AdafactorOptions = {}): Optimizer {
  const [eps1, eps2] = eps
  return {
    name: 'adafactor',
    elementwise: false,
    states: (shape) => (shape.length > 1 ? { rows: shape.with(-1, 1), columns: shape.with(-2, 1) } : { square: shape }),
    scalars: ({ rate, step }) => ({ rate: Math.min(rate, 1 / Math.sqrt(step)), fresh: step ** beta2Decay, keep: 1 - rate * weightDecay }),
    update(u) {
      const { parameter: p, gradient: g } = u
      const [rate, fresh, keep] = ['rate', 'fresh', 'keep'].map((n) => u.scalars[n] as Tensor) as [Tensor, Tensor, Tensor]
      const towards = (name: string, value: Tensor) => {
        const old = u.states[name] as Tensor
        return add(old, mul(sub(value, old), fresh))
      }
      const squares = mul(g, g)
      const states: Record<string, Tensor> = {}
      let variance: Tensor
      if (g.rank > 1) {
        states.rows = towards('rows', mean(squares, [-1], true))
        states.columns = towards('columns', mean(squares, [-2], true))
        variance = div(matmul(states.rows, states.columns), maximum(mean(states.rows, [-2], true), eps1))
      } else variance = states.square = towards('square', squares)
      const direction = div(g, sqrt(maximum(variance, eps1 * eps1)))
      const scale = div(mul(maximum(rms(p), eps2), rate), maximum(mul(rms(direction), 1 / clip), 1))
      const kept = u.decays && weightDecay > 0 ? mul(p, keep) : p
      return { parameter: sub(kept, mul(direction, scale)), states }
    },
  }
}

/** Settings of {@link muon}. */
export interface MuonOptions {
  readonly momentum?: number
  readonly nesterov?: boolean
  readonly weightDecay?: number
  /** Newton–Schulz iterations. */
  readonly iterations?: number
  /** The step is scaled by √max(1, rows/columns), or so that its root mean square is that of AdamW's (Moonshot 2025). */
  readonly scale?: 'original' | 'match-adamw'
}

/** Coefficients of the quintic that drives singular values towards one fastest (Jordan 2024). */
const quintic = [3.4445, -4.775, 2.0315] as const

/** A matrix [m, n] with its singular values brought near one: Newton–Schulz iterations of a quintic. */
export function orthogonalised(x: Tensor, iterations = 5): Tensor {
  const [m, n] = x.shape as [number, number]
  const [a, b, c] = quintic
  // The smaller of the two Gram matrices.
  const tall = m > n
  let y = tall ? transpose(x, [1, 0]) : x
  y = div(y, maximum(sqrt(sum(mul(y, y))), 1e-7))
  for (let i = 0; i < iterations; i++) {
    const gram = matmul(y, y, { transB: true })
    y = add(mul(y, a), matmul(add(mul(gram, b), matmul(gram, gram, { alpha: c })), y))
  }
  return tall ? transpose(y, [1, 0]) : y
}

/** Muon: momentum whose matrix is orthogonalised (Jordan et al. 2024), for matrices; a kernel [out, in, …] counts as [out, in·…]. */
export function muon({
  momentum = 0.95,
  nesterov = true,
  weightDecay = 0,
  iterations = 5,
  scale = 'original',
}: MuonOptions = {}): Optimizer {
  const factors = {
    original: (m: number, n: number) => Math.sqrt(Math.max(1, m / n)),
    'match-adamw': (m: number, n: number) => 0.2 * Math.sqrt(Math.max(m, n)),
  }
  return {
    name: 'muon',
    elementwise: false,
    states: (shape, name) => {
      if (shape.length < 2)
        throw new ShapeError(
          `Muon updates matrices, but '${name}' has shape [${shape.join(', ')}]; give such parameters another optimiser, as in optimizer: (name, shape) => shape.length > 1 ? muon() : adamW().`,
        )
      return { momentum: shape }
    },
    scalars: ({ rate }) => ({ rate, keep: 1 - rate * weightDecay }),
    update(u: UpdateInput) {
      const { parameter: p, gradient: g } = u
      const shape = p.shape as readonly number[]
      const [m, n] = [shape[0] as number, sizeOf(shape.slice(1))]
      const next = add(mul(u.states.momentum as Tensor, momentum), mul(g, 1 - momentum))
      const looked = nesterov ? add(mul(g, 1 - momentum), mul(next, momentum)) : next
      const direction = reshape(orthogonalised(reshape(looked, [m, n]), iterations), shape)
      const kept = u.decays && weightDecay > 0 ? mul(p, u.scalars.keep as Tensor) : p
      return { parameter: sub(kept, mul(direction, mul(u.scalars.rate as Tensor, factors[scale](m, n)))), states: { momentum: next } }
    },
  }
}
