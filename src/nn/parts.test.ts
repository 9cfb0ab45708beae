import { describe, expect, it } from 'vitest'
import { ShapeError, UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import {
  attention,
  constant,
  differentiate,
  evaluate,
  gather,
  input,
  matmul,
  mul,
  squeeze,
  type Tensor,
  unsqueeze,
} from '../tensor/index.ts'
import { causalAttention } from './attention.ts'
import { batches, packedTokens, prefetched, tensorDataset } from './data.ts'
import { constantOf, kaiming, normal, orthogonal, uniform, valuesOf, xavier } from './initialisers.ts'
import { loraLinear, loraOnly, mergedLora } from './lora.ts'
import { mse } from './losses.ts'
import { dropout, linear } from './modules.ts'
import { sgd } from './optimizers.ts'
import { ParameterSet, Scope } from './parameters.ts'
import { RandomStream } from './random.ts'
import { constantRate, cosineRate, inverseSquareRootRate, linearRate, steppedRate, warmupStableDecay, withWarmup } from './schedules.ts'
import { encode, sparseDecode } from './sparse.ts'
import { drawn, integers, relativeError, runtime, stream } from './testing/numbers.ts'
import { train } from './train.ts'

const options = { device: 'cpu', ...runtime } as const

describe('random streams', () => {
  it('go on from a state, and do not depend on one another', () => {
    const stream = RandomStream.of(7)
    stream.normal()
    const resumed = RandomStream.resume(stream.state)
    expect([resumed.next(), resumed.normal()]).toEqual([stream.next(), stream.normal()])
    expect(RandomStream.named(1, 'a').next()).not.toBe(RandomStream.named(1, 'b').next())
    expect([...RandomStream.of(3).permutation(20)].sort((a, b) => a - b)).toEqual(Array.from({ length: 20 }, (_, i) => i))
    expect(() => RandomStream.of(0.5)).toThrow(UsageError)
  })

  it('are uniform and normal', () => {
    const stream = RandomStream.of(1)
    const draws = Array.from({ length: 20000 }, () => stream.normal())
    const mean = draws.reduce((s, v) => s + v, 0) / draws.length
    expect(Math.abs(mean)).toBeLessThan(0.03)
    expect(draws.reduce((s, v) => s + v * v, 0) / draws.length).toBeCloseTo(1, 1)
  })
})

describe('initialisers', () => {
  const deviation = (values: Float32Array) => Math.sqrt(values.reduce((s, v) => s + v * v, 0) / values.length)

  it('have the variances of their papers', () => {
    const shape = [120, 80]
    for (const kind of ['normal', 'uniform'] as const) {
      expect(deviation(xavier(kind)(shape, RandomStream.of(1)))).toBeCloseTo(Math.sqrt(2 / 200), 2)
      expect(deviation(kaiming(kind)(shape, RandomStream.of(1)))).toBeCloseTo(Math.sqrt(2 / 120), 2)
      expect(deviation(kaiming(kind)([16, 8, 3, 3], RandomStream.of(1)))).toBeCloseTo(Math.sqrt(2 / 72), 2)
    }
    expect(deviation(normal(0.3)(shape, RandomStream.of(1)))).toBeCloseTo(0.3, 1)
    expect(Math.max(...uniform(-2, -1)(shape, RandomStream.of(1)))).toBeLessThanOrEqual(-1)
    expect([...constantOf(2)([2], RandomStream.of(1))]).toEqual([2, 2])
    expect(() => valuesOf([1])([2], RandomStream.of(1))).toThrow(ShapeError)
    expect(() => kaiming()([3], RandomStream.of(1))).toThrow(ShapeError)
  })

  it.each([[[5, 9]], [[9, 5]]])('orthogonal makes %j orthonormal', (shape) => {
    const w = orthogonal()(shape, RandomStream.of(2))
    const [rows, columns] = shape as [number, number]
    const few = Math.min(rows, columns)
    const at = (i: number, k: number) => (rows <= columns ? w[i * columns + k] : w[k * columns + i]) as number
    for (let i = 0; i < few; i++)
      for (let j = 0; j < few; j++) {
        let s = 0
        for (let k = 0; k < Math.max(rows, columns); k++) s += at(i, k) * at(j, k)
        expect(s).toBeCloseTo(i === j ? 1 : 0, 6)
      }
  })
})

describe('parameters', () => {
  it('are declared once, tied by name, and loaded whole', () => {
    const set = new ParameterSet()
    const scope = new Scope(set, { seed: 3 })
    const w = scope.in('a').parameter('w', [2, 3], normal())
    expect(scope.in('a').parameter('w', [2, 3], normal())).toBe(w)
    expect(set.names).toEqual(['a.w'])
    expect(() => scope.in('a').parameter('w', [3], normal())).toThrow(ShapeError)
    expect(() => set.get('a.v')).toThrow("did you mean 'a.w'?")
    expect(() => set.add('a.w', set.get('a.w'))).toThrow(UsageError)
    expect(() => set.load({})).toThrow('a.w missing')
    const kept = set.copy()
    set.get('a.w').data.fill(0)
    set.load(kept)
    expect(set.get('a.w').data).toEqual(kept['a.w']?.data)
    const other = new ParameterSet()
    new Scope(other, { seed: 3 }).in('b').parameter('x', [1], normal())
    new Scope(other, { seed: 3 }).in('a').parameter('w', [2, 3], normal())
    expect(other.get('a.w').data).toEqual(kept['a.w']?.data)
  })
})

describe('schedules', () => {
  it('follow their curves', () => {
    const close = (values: number[]) => values.map((v) => expect.closeTo(v, 9))
    const at = (schedule: (done: number) => number, ...steps: number[]) => steps.map(schedule)
    expect(at(constantRate(3), 0, 9)).toEqual([3, 3])
    expect(at(linearRate(1, { steps: 10, end: 0.5 }), 0, 5, 10, 20)).toEqual(close([1, 0.75, 0.5, 0.5]))
    expect(at(cosineRate(2, { steps: 10 }), 0, 5, 10)).toEqual(close([2, 1, 0]))
    expect(at(steppedRate(1, { every: 3 }), 2, 3, 6)).toEqual(close([1, 0.1, 0.01]))
    expect(at(inverseSquareRootRate(1, { scale: 4 }), 0, 3, 15)).toEqual(close([0.25, 1, 0.5]))
    expect(at(warmupStableDecay(1, { steps: 20, warmup: 4, decay: 10 }), 0, 3, 8, 15, 20)).toEqual(close([0.25, 1, 1, 0.5, 0]))
    expect(at(withWarmup(cosineRate(1, { steps: 10 }), 2), 0, 1, 2, 12)).toEqual(close([0.5, 1, 1, 0]))
    expect(() => linearRate(1, { steps: -1 })).toThrow(UsageError)
  })
})

describe('data', () => {
  const numbers: NDArray = { dtype: 'int32', shape: [10, 2], data: Int32Array.from({ length: 20 }, (_, i) => i) }

  it('is packed without padding, targets one further', async () => {
    const packed = packedTokens([[1, 2, 3], [4, 5], [6]], { length: 4, separator: 9 })
    expect(packed.length).toBe(2)
    const { ids, targets } = (await packed.batch([1, 0])) as { ids: NDArray; targets: NDArray }
    expect([...ids.data].map(Number)).toEqual([4, 5, 9, 6, 1, 2, 3, 9])
    expect([...targets.data].map(Number)).toEqual([5, 9, 6, 9, 2, 3, 9, 4])
    expect(() => packedTokens([[1]], { length: 4 })).toThrow('too few for one block')
  })

  it.each([false, true])('is shuffled by seed and goes on from any position (prefetched: %s)', async (ahead) => {
    const make = () => {
      const source = batches(tensorDataset({ x: numbers }), { batch: 3, seed: 5 })
      return ahead ? prefetched(source, 3) : source
    }
    const [all, source] = [[] as string[], make()]
    const positions = [source.position]
    for (let i = 0; i < 8; i++) {
      all.push(String((await source.next()).x?.data))
      positions.push(source.position)
    }
    expect(new Set(all.slice(0, 3).join().split(',')).size).toBe(18)
    expect(all.slice(0, 3)).not.toEqual(all.slice(3, 6))
    for (const from of [0, 2, 3, 7]) {
      const again = make()
      await again.next()
      again.seek(positions[from] as (typeof positions)[number])
      expect(String((await again.next()).x?.data)).toBe(all[from])
    }
    expect(() => make().seek({ epoch: 0, batch: 4 })).toThrow(UsageError)
    expect(() => batches(tensorDataset({ x: numbers }), { batch: 11 })).toThrow(UsageError)
    expect(() => tensorDataset({ x: numbers, y: { ...numbers, shape: [5, 4] } })).toThrow(ShapeError)
  })
})

describe('modules', () => {
  it('attend like the attention op of the engine, forward and backward', async () => {
    const [batch, pos, heads, kvHeads, size] = [2, 5, 4, 2, 8]
    const next = stream(61)
    const feeds = {
      q: drawn(next, [batch, pos, heads * size]),
      k: drawn(next, [batch, pos, kvHeads * size]),
      v: drawn(next, [batch, pos, kvHeads * size]),
    }
    const [q, k, v] = (['q', 'k', 'v'] as const).map((n) => input(n, 'float32', feeds[n].shape)) as [Tensor, Tensor, Tensor]
    const ours = causalAttention(q, k, v, { heads, kvHeads })
    const slots = constant('int64', [batch, pos], [0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    const theirs = attention(
      { q, k, v, slots, lastSlot: constant('int32', [batch], [pos - 1, pos - 1]), total: constant('int32', [], [pos]) },
      { heads, kvHeads, headDim: size, scale: size ** -0.5, interleaved: false, explicitPositions: false },
    ).z
    const outputs: Record<string, Tensor> = {}
    for (const [name, z] of Object.entries({ ours, theirs })) {
      const d = differentiate({ of: mul(mul(z, z), z).sum(), at: [q, k, v] })
      outputs[name] = z
      for (const [i, g] of d.grads.entries()) outputs[`${name}.${i}`] = g
    }
    const out = await evaluate(outputs, feeds, options)
    for (const part of ['', '.0', '.1', '.2'])
      expect(relativeError(out[`ours${part}`]?.data as Float32Array, out[`theirs${part}`]?.data as Float32Array)).toBeLessThan(1e-5)
  })

  it('decode sparsely as by the dense product, forward and backward', async () => {
    const [n, k, features, width] = [96, 8, 128, 512]
    const next = stream(62)
    const values = drawn(next, [n, k])
    const decoder = drawn(next, [features, width])
    const indices = integers(next, [n, k], features / k)
    for (let i = 0; i < n * k; i++) indices.data[i] = (indices.data[i] as bigint) * BigInt(k) + BigInt(i % k)
    const [v, i, d] = [input('v', 'float32', [n, k]), input('i', 'int64', [n, k]), input('d', 'float32', [features, width])]
    const outputs: Record<string, Tensor> = {}
    for (const [name, y] of Object.entries({ ours: sparseDecode(v, i, d), plain: squeeze(matmul(unsqueeze(v, 1), gather(d, i)), 1) })) {
      outputs[name] = y
      for (const [j, g] of differentiate({ of: mul(y, y).sum(), at: [v, d] }).grads.entries()) outputs[`${name}.${j}`] = g
    }
    const out = await evaluate(outputs, { v: values, i: indices, d: decoder }, options)
    for (const part of ['', '.0', '.1'])
      expect(relativeError(out[`ours${part}`]?.data as Float32Array, out[`plain${part}`]?.data as Float32Array)).toBeLessThan(1e-5)
    const x = { x: drawn(next, [n, 6]), w: drawn(next, [6, 9]), e: drawn(next, [9]), b: drawn(next, [6]) }
    const [xs, w, e, b] = Object.entries(x).map(([name, a]) => input(name, 'float32', a.shape)) as [Tensor, Tensor, Tensor, Tensor]
    const encoded = await evaluate(
      { ours: encode(xs, { encoder: w, encoderBias: e, decoderBias: b }), plain: matmul(xs.sub(b), w).add(e) },
      x,
      options,
    )
    expect(relativeError(encoded.ours.data as Float32Array, encoded.plain.data as Float32Array)).toBeLessThan(1e-5)
  })

  it('drop values by counted numbers: the same at the same step', async () => {
    const step = input('step', 'int64', [])
    const y = dropout(constant('float32', [400], new Float32Array(400).fill(1)), { rate: 0.25, step, seed: 1 })
    const at = async (n: number) =>
      (await evaluate({ y }, { step: { dtype: 'int64', shape: [], data: BigInt64Array.of(BigInt(n)) } }, options)).y.data as Float32Array
    const [first, again, second] = [await at(1), await at(1), await at(2)]
    expect(first).toEqual(again)
    expect(first).not.toEqual(second)
    expect(first.filter((v) => v === 0).length / 400).toBeCloseTo(0.25, 1)
    expect(Math.max(...first)).toBeCloseTo(4 / 3, 6)
  })

  it('train adapters alone, which can then be merged', async () => {
    const next = stream(63)
    const [x, y] = [drawn(next, [32, 6]), drawn(next, [32, 4])]
    const parameters = new ParameterSet()
    const fitted = (model: typeof loraLinear | typeof linear, steps: number, set: ParameterSet) =>
      train({
        model: (inputs, scope) =>
          mse((model as typeof loraLinear)(scope.in('layer'), inputs.x as Tensor, 4, { rank: 2, alpha: 4 }), inputs.y as Tensor),
        data: batches(tensorDataset({ x, y }), { batch: 32 }),
        optimizer: sgd(),
        rate: 0.1,
        steps,
        parameters: set,
        trainable: model === linear ? () => true : loraOnly,
        runtime,
      })
    await fitted(loraLinear, 1, parameters)
    const before = parameters.copy()
    const { loss } = await fitted(loraLinear, 30, parameters)
    expect(parameters.get('layer.weight').data).toEqual(before['layer.weight']?.data)
    expect(parameters.get('layer.lora_b').data).not.toEqual(before['layer.lora_b']?.data)
    const merged = await mergedLora(parameters, { alpha: 4, program: options })
    expect(merged.names).toEqual(['layer.weight', 'layer.bias'])
    const plain = await fitted(linear as typeof loraLinear, 1, merged)
    expect(plain.loss).toBeLessThan(loss)
    await expect(mergedLora(merged, { program: options })).rejects.toThrow('no adapter')
  })
})
