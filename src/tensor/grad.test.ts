import { describe, expect, it } from 'vitest'
import { EditError, ShapeError, UsageError } from '../base/errors.ts'
import { topological } from './graph.ts'
import {
  add,
  apply1,
  argmax,
  cast,
  constant,
  cut,
  defineOp,
  differentiate,
  evaluate,
  gather,
  gradients,
  hessianVectorProduct,
  input,
  jvp,
  logSoftmax,
  matmul,
  mul,
  oneHot,
  Program,
  relu,
  reshape,
  rmsNorm,
  silu,
  slice,
  softmax,
  split,
  stopGradient,
  sub,
  type Tensor,
  tanh,
  tidy,
  vjp,
  weight,
} from './index.ts'
import { arrayOf, stream, testOptions } from './ops/testing/check.ts'

const f32 = (shape: number[], data: number[]) => arrayOf('float32', shape, data)
const numbers = (x: { data: unknown }) => [...(x.data as Float32Array)]
const close = (values: number[], digits = 5) => values.map((v) => expect.closeTo(v, digits))
const opsIn = (...ts: Tensor[]) => topological(tidy(ts, false)).map((n) => n.op.name)

describe('gradients', () => {
  it('of a cross-entropy are the closed form', async () => {
    const x = input('x', 'float32', ['n', 3])
    const target = input('target', 'int64', ['n'])
    const loss = mul(logSoftmax(x), oneHot(target, 3)).sum().neg()
    const [g] = gradients(loss, [x]) as [Tensor]
    const feeds = { x: f32([2, 3], [1, 2, 3, 0, 0, 1]), target: arrayOf('int64', [2], [0, 2]) }
    const out = await evaluate({ g, expected: sub(softmax(x), oneHot(target, 3)) }, feeds, testOptions)
    expect(numbers(out.g)).toEqual(close(numbers(out.expected)))
  })

  it('with respect to inner values, inputs and weights come from one sweep', async () => {
    const x = input('x', 'float32', [2])
    const w = constant('float32', [2], [3, 4])
    const h = mul(x, w)
    const of = mul(h, h).sum()
    const out = await evaluate(
      Object.fromEntries(gradients(of, [h, x, w]).map((g, i) => [`g${i}`, g])),
      { x: f32([2], [1, 2]) },
      testOptions,
    )
    expect(numbers(out.g0 as never)).toEqual([6, 16])
    expect(numbers(out.g1 as never)).toEqual([18, 64])
    expect(numbers(out.g2 as never)).toEqual([6, 32])
  })

  it('stop at stopGradient, and at indices', async () => {
    const x = input('x', 'float32', [2])
    const [g] = gradients(mul(x, stopGradient(x)).sum(), [x]) as [Tensor]
    expect(numbers((await evaluate({ g }, { x: f32([2], [3, 5]) }, testOptions)).g)).toEqual([3, 5])
    expect(() => gradients(cast(argmax(x, 0), 'float32'), [x])).toThrow(
      "The value to differentiate does not depend on the input 'x' in a differentiable way: every path runs through ops like 'argmax', which have no gradient.",
    )
  })

  it('are refused with a sentence before anything runs', () => {
    const x = input('x', 'float32', ['n'])
    const y = input('y', 'float32', ['n'])
    expect(() => gradients(mul(x, 2), [x])).toThrow(
      'Only a scalar has a gradient, but the value to differentiate has shape [n]; sum it, or give a seed.',
    )
    expect(() => gradients(x.sum(), [y])).toThrow(EditError)
    expect(() => gradients(x.sum(), [y])).toThrow(
      "The value to differentiate does not depend on the input 'y', so there is no gradient there.",
    )
    expect(() => gradients(cast(x, 'int64').sum(), [x])).toThrow(UsageError)
    expect(() => gradients(x, [x], { seed: constant('float32', [2], [1, 2]) })).toThrow(ShapeError)
    defineOp({ name: 'test_no_rule', doc: 'Has no rule.', infer: (inputs) => [inputs[0] as Tensor] })
    expect(() => gradients(apply1('test_no_rule', [x]).sum(), [x])).toThrow(
      "The op 'test_no_rule' has no gradient rule, so nothing can be differentiated through it; put stopGradient before it, or write it in ops that have one.",
    )
  })

  it('leave composites fused where no gradient flows', () => {
    const x = input('x', 'float32', ['n', 4])
    const gain = constant('float32', [4], [1, 2, 3, 4])
    const h = rmsNorm(silu(x), gain, 1e-5)
    const d = differentiate({ of: mul(h, h).sum(), at: [h] })
    expect(opsIn(...d.grads)).toContain('rms_norm')
  })

  it('of a split come as one concatenation, those of a tied table in one scatter', () => {
    const x = input('x', 'float32', ['n', 6])
    const [a, b, c] = split(x, 1, [2, 2, 2]) as [Tensor, Tensor, Tensor]
    const [g] = gradients(mul(mul(a, b), c).sum(), [x]) as [Tensor]
    expect(opsIn(g).filter((n) => n === 'unslice')).toEqual([])
    const table = constant('float32', [5, 2], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    const ids = input('ids', 'int64', ['n'])
    const [t] = gradients(matmul(tanh(gather(table, ids)), table, { transB: true }).sum(), [table]) as [Tensor]
    expect(opsIn(t).filter((n) => n === 'add' || n === 'expand')).toHaveLength(1)
  })

  it('of a weight over a batch are one matrix product', () => {
    const x = input('x', 'float32', ['batch', 'pos', 3])
    const w = input('w', 'float32', [4, 3])
    const [g] = gradients(tanh(matmul(x, w, { transB: true })).sum(), [w]) as [Tensor]
    const product = topological([g]).findLast((n) => n.op.name === 'matmul')
    expect(product?.inputs.map((t) => t?.shape)).toEqual([
      ['batch*pos', 4],
      ['batch*pos', 3],
    ])
  })

  it('read the lengths of named axes from program inputs, so that nothing is kept for its shape', () => {
    const ids = input('ids', 'int64', ['batch', 'pos'])
    const w = input('w', 'float32', [3, 4])
    const [g] = gradients(matmul(gather(constant('float32', [2, 3], [1, 2, 3, 4, 5, 6]), ids), w).sum(), [w]) as [Tensor]
    expect(topological([g]).filter((n) => n.op.name === 'matmul')).toHaveLength(1)
  })

  it('of gradients are exact', async () => {
    const x = input('x', 'float64', [3])
    const [g] = gradients(mul(mul(x, x), x).sum(), [x]) as [Tensor]
    const [h] = gradients(g.sum(), [x]) as [Tensor]
    const [third] = gradients(h.sum(), [x]) as [Tensor]
    const out = await evaluate({ h, third }, { x: arrayOf('float64', [3], [1, -2, 0.5]) }, testOptions)
    expect(numbers(out.h)).toEqual(close([6, -12, 3], 12))
    expect(numbers(out.third)).toEqual(close([6, 6, 6], 12))
  })
})

describe('products with Jacobians and Hessians', () => {
  const x = input('x', 'float64', ['n', 2])
  const v = input('v', 'float64', ['n', 2])
  const w = constant('float64', [2, 3], [1, -2, 0.5, 0.3, 1, 2])
  const y = softmax(tanh(matmul(x, w)))
  const feeds = { x: arrayOf('float64', [2, 2], [0.1, -0.4, 1, 0.7]), v: arrayOf('float64', [2, 2], [1, -1, 0.5, 2]) }

  it('agree with differences along the direction', async () => {
    const step = 1e-6
    const change = jvp(y, [x], [v])
    const moved = (sign: number) => ({
      ...feeds,
      x: arrayOf(
        'float64',
        [2, 2],
        numbers(feeds.x).map((a, i) => a + sign * step * (numbers(feeds.v)[i] as number)),
      ),
    })
    const out = await evaluate({ change: change.change }, feeds, testOptions)
    const [above, below] = [await evaluate({ y }, { x: moved(1).x }, testOptions), await evaluate({ y }, { x: moved(-1).x }, testOptions)]
    expect(numbers(out.change)).toEqual(
      close(
        numbers(above.y).map((a, i) => (a - (numbers(below.y)[i] as number)) / (2 * step)),
        7,
      ),
    )
    const of = mul(y, y).sum()
    const hvp = hessianVectorProduct(of, [x], [v])
    const slope = (await Program.of({ g: gradients(of, [x])[0] as Tensor }, testOptions)) as Program<'g'>
    const [up, down] = [await slope.run({ x: moved(1).x }), await slope.run({ x: moved(-1).x })]
    const product = await evaluate({ p: hvp.products[0] as Tensor }, feeds, testOptions)
    expect(numbers(product.p)).toEqual(
      close(
        numbers(up.g).map((a, i) => (a - (numbers(down.g)[i] as number)) / (2 * step)),
        7,
      ),
    )
  })

  it('are transposes of each other', async () => {
    const u = input('u', 'float64', ['n', 3])
    const forward = mul(jvp(y, [x], [v]).change, u).sum()
    const backward = mul(vjp(y, [x], u)[0] as Tensor, v).sum()
    const out = await evaluate({ forward, backward }, { ...feeds, u: arrayOf('float64', [2, 3], [1, 2, -1, 0.5, 0, 3]) }, testOptions)
    expect(numbers(out.forward)).toEqual(close(numbers(out.backward), 12))
  })

  it('of a linear function have no second part', async () => {
    const { products } = hessianVectorProduct(mul(x, 2).sum(), [x], [v])
    expect(numbers((await evaluate({ p: products[0] as Tensor }, { x: feeds.x }, testOptions)).p)).toEqual([0, 0, 0, 0])
  })
})

describe('gradients in segments', () => {
  const layers = 4
  const next = stream(3)
  let made = 0
  const random = (shape: number[]) => {
    const data = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => next() - 0.5)
    const name = `w${made++}`
    return weight({ name, dtype: 'float32', shape, place: { data: new Uint8Array(data.buffer), key: name } })
  }
  const build = () => {
    const ids = input('ids', 'int64', ['batch', 'pos'])
    const table = random([7, 8])
    const weights: Tensor[] = []
    const sites: Tensor[] = []
    let h = gather(table, ids)
    for (let i = 0; i < layers; i++) {
      h = cut(h, i)
      const w = random([8, 8])
      weights.push(w)
      h = add(h, relu(matmul(rmsNorm(h, random([8]), 1e-5), w, { transB: true })))
      sites.push(h)
    }
    const logits = slice(reshape(h, ['batch*pos', 8]), 0, -1)
    return { ids, table, weights, sites, of: logSoftmax(logits).mean() }
  }
  const feeds = { ids: arrayOf('int64', [2, 3], [0, 1, 2, 3, 4, 6]) }

  it('are the same, backward pass by backward pass', async () => {
    const g = build()
    const at = [g.table, ...g.weights, g.sites[0] as Tensor]
    const d = differentiate({ of: g.of, at, cut: true })
    const outputs = { of: d.of, ...Object.fromEntries(d.grads.map((t, i) => [`g${i}`, t])) }
    const whole = await Program.of(outputs, testOptions)
    const parts = await Program.of(outputs, { ...testOptions, segmented: true })
    // The last layer is followed backward in its own session; the part before the first mark has nothing of its own forward.
    expect([whole.size, parts.size]).toEqual([1, 2 * layers])
    const [a, b] = [await whole.run(feeds), await parts.run(feeds)]
    for (const name of Object.keys(outputs)) expect(numbers(b[name as 'of'])).toEqual(close(numbers(a[name as 'of']), 6))
  })

  it('keep only what the forward pass computes anyway', async () => {
    const g = build()
    const d = differentiate({ of: g.of, at: [g.weights[0] as Tensor], cut: true })
    const forward = new Set(topological([d.of]))
    for (const node of topological(d.grads)) {
      if (node.op.name !== 'cut' || (node.attrs.index as number) < layers) continue
      const held = node.inputs[0] as Tensor
      // A mark of the backward pass holds a forward value, or passes a gradient on.
      expect(
        forward.has(held.node) ||
          topological([held]).some((n) => n.op.name === 'cut' && (n.attrs.index as number) >= layers) ||
          node.attrs.index === layers,
      ).toBe(true)
    }
  })
})
