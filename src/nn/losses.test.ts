import { describe, expect, it } from 'vitest'
import { ShapeError } from '../base/errors.ts'
import {
  constant,
  differentiate,
  evaluate,
  flip,
  gatherElements,
  input,
  logSumExp,
  matmul,
  SessionCache,
  sigmoid,
  squeeze,
  sub,
  type Tensor,
  unsqueeze,
} from '../tensor/index.ts'
import {
  binaryCrossEntropy,
  contrastive,
  cosineLoss,
  crossEntropy,
  huber,
  klDivergence,
  l1Penalty,
  mse,
  negativeEntropy,
  triplet,
} from './losses.ts'
import { drawn, runtime, stream } from './testing/numbers.ts'
import recorded from './testing/recorded.json' with { type: 'json' }

const next = stream(13)
const [a, b] = [drawn(next, [4, 6], 4), drawn(next, [4, 6], 4)]
const options = { device: 'cpu', ...runtime } as const

async function valueAndSlope(loss: (x: Tensor, b: Tensor) => Tensor): Promise<{ value: number; norm: number }> {
  const x = input('x', 'float32', [4, 6])
  const { of, grads } = differentiate({ of: loss(x, input('b', 'float32', [4, 6])), at: [x] })
  const out = await evaluate({ of, g: grads[0] as Tensor }, { x: a, b }, options)
  return { value: Number(out.of.data[0]), norm: Math.hypot(...(out.g.data as Float32Array)) }
}

const targets = constant('int64', [4], [2, 0, 5, 1])

describe('losses', () => {
  it.each<[keyof typeof recorded.losses, (x: Tensor, b: Tensor) => Tensor]>([
    ['crossEntropy', (x) => crossEntropy(x, targets)],
    ['ignored', (x) => crossEntropy(x, targets, { ignore: 0 })],
    ['mse', (x, y) => mse(x, y)],
    ['huber', (x, y) => huber(x, y, { delta: 0.7 })],
    ['bce', (x, y) => binaryCrossEntropy(x, sigmoid(y))],
    ['kl', (x, y) => klDivergence(x, y)],
    ['cosine', (x, y) => cosineLoss(x, y)],
    ['triplet', (x, y) => triplet(x, y, flip(y, [0]))],
    ['contrastive', (x, y) => contrastive(x, y, { temperature: 0.5 })],
    ['l1', (x) => l1Penalty(x)],
  ])('%s has the value and the slope that PyTorch gives', async (name, loss) => {
    const { value, norm } = await valueAndSlope(loss)
    expect(Math.abs(value / recorded.losses[name].value - 1)).toBeLessThan(1e-5)
    expect(Math.abs(norm / recorded.losses[name].norm - 1)).toBeLessThan(1e-5)
  })

  it('count what a mask says, and nothing where it is empty', async () => {
    const masked = (mask: number[]) => valueAndSlope((x) => crossEntropy(x, targets, { mask: constant('float32', [4], mask) }))
    expect((await masked([1, 0, 1, 1])).value).toBeCloseTo(recorded.losses.ignored.value, 5)
    expect(await masked([0, 0, 0, 0])).toEqual({ value: expect.closeTo(0, 12), norm: expect.closeTo(0, 12) })
    expect((await valueAndSlope((x) => negativeEntropy(x.mul(0)))).value).toBeCloseTo(-Math.log(6), 5)
  })

  it('refuse targets that do not fit', () => {
    expect(() => crossEntropy(input('x', 'float32', [4, 6]), input('t', 'int64', [4, 6]))).toThrow(ShapeError)
  })
})

describe('cross-entropy of a large vocabulary', () => {
  const [classes, width] = [9000, 8]
  const wave = (n: number, f: number) => Float32Array.from({ length: n }, (_, i) => Math.sin(i * f) * 1.5)
  const table = { dtype: 'float32' as const, shape: [classes, width], data: wave(classes * width, 1.37) }
  it.each([
    ['of known length', [3, 5, width]],
    ['of symbolic length', ['batch', 'pos', width]],
  ] as const)('has the value and the gradients of its definition, %s', async (_, shape) => {
    const x = { dtype: 'float32' as const, shape: [3, 5, width], data: wave(120, 0.7) }
    const ids = { dtype: 'int64' as const, shape: [3, 5], data: BigInt64Array.from({ length: 15 }, (_, i) => BigInt((i * 613) % classes)) }
    const run = async (loss: (x: Tensor, w: Tensor, t: Tensor) => Tensor) => {
      const [a, w, t] = [input('x', 'float32', shape), input('w', 'float32', [classes, width]), input('t', 'int64', shape.slice(0, 2))]
      const d = differentiate({ of: loss(a, w, t), at: [a, w] })
      const outputs = { loss: d.of, x: d.grads[0] as Tensor, w: d.grads[1] as Tensor }
      return evaluate(outputs, { x, w: table, t: ids }, { device: 'cpu', cache: new SessionCache(1e9), threads: 1 })
    }
    const ours = await run((a, w, t) => crossEntropy(matmul(a, w, { transB: true }), t))
    const plain = (a: Tensor, w: Tensor, t: Tensor) => {
      const logits = matmul(a, w, { transB: true })
      return sub(logSumExp(logits, [-1]), squeeze(gatherElements(logits, unsqueeze(t, -1), -1), -1)).mean()
    }
    const want = await run(plain)
    expect(Number(ours.loss.data[0])).toBeCloseTo(Number(want.loss.data[0]), 4)
    for (const name of ['x', 'w'] as const) {
      const size = Math.max(...Array.from(want[name].data as Float32Array, Math.abs))
      const worst = Math.max(...Array.from(ours[name].data as Float32Array, (v, i) => Math.abs(v - Number(want[name].data[i]))))
      expect(worst / size).toBeLessThan(1e-4)
    }
  })
})
