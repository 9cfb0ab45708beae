import { describe, expect, it } from 'vitest'
import { CancelledError, FormatError, UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { div, gather, matmul, maxPool, mean, mul, relu, sqrt, squeeze, sub, sum, type Tensor, topK, unsqueeze } from '../tensor/index.ts'
import type { Checkpoint, CheckpointFiles } from './checkpoint.ts'
import { type BatchSource, batches, packedTokens, prefetched, tensorDataset } from './data.ts'
import { crossEntropy, mse } from './losses.ts'
import { addPositions, convolution, dropout, embedding, layerNormed, linear, transformerBlock } from './modules.ts'
import { adam, adamW, sgd } from './optimizers.ts'
import type { ParameterSet, Scope } from './parameters.ts'
import { TrainingStep } from './step.ts'
import { drawn, drawnParameters, integers, relativeError, runtime, stream } from './testing/numbers.ts'
import recorded from './testing/recorded.json' with { type: 'json' }
import { NotFiniteError, type TrainOptions, train, trainSteps } from './train.ts'

const [vocab, width, hidden, layers, batch, length] = [17, 16, 32, 2, 4, 8]

function transformer({ ids, targets }: Readonly<Record<string, Tensor>>, scope: Scope): Tensor {
  let x = addPositions(scope.in('position'), embedding(scope.in('embed'), ids as Tensor, vocab, width), length)
  for (let i = 0; i < layers; i++) x = transformerBlock(scope.in(`block${i}`), x, { attention: { heads: 2 }, mlp: { hidden } })
  return crossEntropy(linear(scope.in('head'), layerNormed(scope.in('norm'), x), vocab), targets as Tensor)
}

function transformerParameters(): ParameterSet {
  const block = (i: number) => {
    const norm = (n: string) =>
      [
        [`block${i}.${n}.weight`, [width], 0.2, 1],
        [`block${i}.${n}.bias`, [width], 0.2, 0],
      ] as const
    const layer = (n: string, from: number, to: number) =>
      [
        [`block${i}.${n}.weight`, [from, to], 0.5, 0],
        [`block${i}.${n}.bias`, [to], 0.2, 0],
      ] as const
    return [
      ...norm('norm1'),
      ...norm('norm2'),
      ...['q', 'k', 'v', 'o'].flatMap((n) => layer(`attention.${n}`, width, width)),
      ...layer('mlp.up', width, hidden),
      ...layer('mlp.down', hidden, width),
    ]
  }
  return drawnParameters(
    [
      ['embed.weight', [vocab, width], 0.5, 0],
      ['position.weight', [length, width], 0.5, 0],
      ...Array.from({ length: layers }, (_, i) => block(i)).flat(),
      ['norm.weight', [width], 0.2, 1],
      ['norm.bias', [width], 0.2, 0],
      ['head.weight', [width, vocab], 0.5, 0],
      ['head.bias', [vocab], 0.2, 0],
    ],
    11,
  )
}

/** Batches from a function, in the order in which it makes them. */
function drawnBatches(make: () => Record<string, NDArray>): BatchSource {
  const made: Record<string, NDArray>[] = []
  let at = 0
  return {
    get position() {
      return { epoch: 0, batch: at }
    },
    seek: (to) => {
      at = to.batch
    },
    async next() {
      while (made.length <= at) made.push(make())
      return made[at++] as Record<string, NDArray>
    },
  }
}

function tokenBatches(): BatchSource {
  const next = stream(5)
  return drawnBatches(() => {
    const { data } = integers(next, [batch, length + 1], vocab)
    const block = (shift: number): NDArray => ({
      dtype: 'int64',
      shape: [batch, length],
      data: BigInt64Array.from(
        { length: batch * length },
        (_, i) => data[Math.floor(i / length) * (length + 1) + (i % length) + shift] as bigint,
      ),
    })
    return { ids: block(0), targets: block(1) }
  })
}

async function lossesOf(options: TrainOptions): Promise<number[]> {
  const losses: number[] = []
  for await (const { loss } of trainSteps(options)) losses.push(loss)
  return losses
}

/** Checkpoints in memory, copied as a disk would. */
function inMemory(): CheckpointFiles & { readonly kept: Map<string, Checkpoint> } {
  const kept = new Map<string, Checkpoint>()
  return {
    kept,
    async write(name, { tensors, metadata }) {
      kept.set(name, {
        metadata,
        tensors: Object.fromEntries(Object.entries(tensors).map(([k, t]) => [k, { ...t, data: t.data.slice() }])),
      })
    },
    read: async (name) => kept.get(name) as Checkpoint,
    list: async () => [...kept.keys()],
    remove: async (name) => void kept.delete(name),
  }
}

describe('training from the same numbers as PyTorch', () => {
  it('a transformer of two layers gives its losses over 20 steps', async () => {
    const losses = await lossesOf({
      model: transformer,
      parameters: transformerParameters(),
      data: tokenBatches(),
      optimizer: adamW({ weightDecay: 0.1 }),
      rate: 1e-2,
      clip: { norm: 1 },
      steps: 20,
      runtime,
    })
    for (const [i, loss] of losses.entries()) expect(Math.abs(loss / (recorded.transformer[i] as number) - 1)).toBeLessThan(1e-4)
  })

  it('a convolutional net gives its losses over 20 steps', async () => {
    const next = stream(7)
    const parameters = drawnParameters(
      [
        ['conv1.weight', [4, 1, 3, 3], 0.8, 0],
        ['conv1.bias', [4], 0.2, 0],
        ['conv2.weight', [8, 4, 3, 3], 0.5, 0],
        ['conv2.bias', [8], 0.2, 0],
        ['head.weight', [8, 3], 0.8, 0],
        ['head.bias', [3], 0.2, 0],
      ],
      21,
    )
    const losses = await lossesOf({
      model: ({ x, y }, scope) => {
        const first = relu(convolution(scope.in('conv1'), x as Tensor, { out: 4, kernel: [3, 3], padding: 1 }))
        const second = relu(
          convolution(scope.in('conv2'), maxPool(first, { kernel: 2, stride: 2 }).values, {
            out: 8,
            kernel: [3, 3],
            stride: 2,
            padding: 1,
          }),
        )
        return crossEntropy(linear(scope.in('head'), mean(second, [2, 3]), 3), y as Tensor)
      },
      parameters,
      data: drawnBatches(() => ({ x: drawn(next, [6, 1, 8, 8], 2), y: integers(next, [6], 3) })),
      optimizer: sgd({ momentum: 0.9 }),
      rate: 0.1,
      steps: 20,
      runtime,
    })
    for (const [i, loss] of losses.entries()) expect(Math.abs(loss / (recorded.convolution[i] as number) - 1)).toBeLessThan(1e-4)
  })
})

describe('an autoencoder of sparse features', () => {
  it('finds a planted dictionary', async () => {
    const [inside, features, planted, active, rows] = [64, 256, 96, 3, 512]
    const next = stream(31)
    const normalised = (n: number) => {
      const x = drawn(next, [n, inside])
      for (let r = 0; r < n; r++) {
        const row = x.data.subarray(r * inside, (r + 1) * inside)
        const size = Math.hypot(...row)
        for (let i = 0; i < inside; i++) row[i] = (row[i] as number) / size
      }
      return x
    }
    const truth = normalised(planted)
    const sample = (): Record<string, NDArray> => {
      const x = new Float32Array(rows * inside)
      for (let r = 0; r < rows; r++)
        for (let k = 0; k < active; k++) {
          const [f, amount] = [Math.floor((next() + 0.5) * planted), 1.5 + next()]
          for (let i = 0; i < inside; i++)
            x[r * inside + i] = (x[r * inside + i] as number) + amount * (truth.data[f * inside + i] as number)
        }
      return { x: { dtype: 'float32', shape: [rows, inside], data: x } }
    }
    const start = normalised(features)
    const unitRows = (w: Tensor) => div(w, sqrt(sum(mul(w, w), [-1], true)))
    const result = await train({
      model: ({ x }, scope) => {
        const decoder = scope.parameter('W_dec', [features, inside], () => start.data.slice())
        const encoder = scope.parameter('W_enc', [inside, features], () =>
          Float32Array.from(
            { length: inside * features },
            (_, i) => start.data[(i % features) * inside + Math.floor(i / features)] as number,
          ),
        )
        const { values, indices } = topK(matmul(x as Tensor, encoder), active)
        const kept = relu(values)
        const rebuilt = squeeze(matmul(unsqueeze(kept, 1), gather(decoder, indices)), 1)
        return mean(sum(mul(sub(x as Tensor, rebuilt), sub(x as Tensor, rebuilt)), [-1]))
      },
      data: drawnBatches(sample),
      optimizer: adam(),
      rate: 3e-3,
      steps: 350,
      hooks: { W_dec: { parameter: unitRows, rowwise: true } },
      runtime,
    })
    const found = result.parameters.get('W_dec').data
    let recovered = 0
    for (let p = 0; p < planted; p++) {
      let best = 0
      for (let f = 0; f < features; f++) {
        let along = 0
        for (let i = 0; i < inside; i++) along += (found[f * inside + i] as number) * (truth.data[p * inside + i] as number)
        best = Math.max(best, along)
      }
      if (best > 0.95) recovered++
    }
    expect(recovered / planted).toBeGreaterThan(0.9)
    for (let f = 0; f < features; f++) expect(Math.hypot(...found.subarray(f * inside, (f + 1) * inside))).toBeCloseTo(1, 4)
  })
})

describe('resuming', () => {
  const texts = (() => {
    const next = stream(40)
    return Array.from({ length: 30 }, () => Array.from({ length: 20 }, () => Math.floor((next() + 0.5) * vocab)))
  })()
  /** A training with everything that has a state: dropout, shuffled data, momentum, averages, accumulated gradients. */
  const options = (steps: number, files: CheckpointFiles, extra: Partial<TrainOptions> = {}): TrainOptions => ({
    model: ({ ids, targets, step }, scope) => {
      const x = dropout(embedding(scope.in('embed'), ids as Tensor, vocab, width), { rate: 0.2, step: step as Tensor })
      return crossEntropy(
        linear(
          scope.in('head'),
          transformerBlock(scope.in('block'), x, {
            attention: { heads: 2, rotaryBase: 100 },
            mlp: { hidden, gated: true, activation: 'silu' },
            norm: 'rms',
          }),
          vocab,
        ),
        targets as Tensor,
      )
    },
    data: prefetched(batches(packedTokens(texts, { length, separator: 0 }), { batch: 5, seed: 2 })),
    optimizer: adamW(),
    rate: (done) => 1e-2 / (1 + done),
    average: { decay: 0.9 },
    accumulate: 2,
    steps,
    checkpoints: { files, every: 3, keep: 2 },
    seed: 4,
    runtime,
    ...extra,
  })

  it('equals the uninterrupted run bit for bit, wherever it was killed', async () => {
    const whole = inMemory()
    const losses = await lossesOf(options(12, whole))
    const final = whole.kept.get('step-000000012') as Checkpoint
    expect([...whole.kept.keys()]).toEqual(['step-000000009', 'step-000000012'])
    for (const killedAfter of [1, 4, 6, 11]) {
      const files = inMemory()
      const before: number[] = []
      for await (const { loss } of trainSteps(options(12, files))) if (before.push(loss) === killedAfter) break
      const last = Math.floor(killedAfter / 3) * 3
      const after = await lossesOf(options(12, files, { checkpoints: { files, every: 3, resume: 'newest' } }))
      expect([...before.slice(0, last), ...after]).toEqual(losses)
      const resumed = files.kept.get('step-000000012') as Checkpoint
      expect(resumed.metadata).toEqual(final.metadata)
      for (const [key, { data }] of Object.entries(final.tensors)) expect(resumed.tensors[key]?.data).toEqual(data)
    }
  })

  it('of another model or optimiser is refused before anything is changed', async () => {
    const files = inMemory()
    await train(options(3, files))
    const resume = { files, every: 3, resume: 'newest' }
    await expect(train(options(6, files, { optimizer: sgd(), checkpoints: resume }))).rejects.toThrow(FormatError)
    await expect(train(options(6, files, { optimizer: sgd(), checkpoints: resume }))).rejects.toThrow(
      /another model or optimiser: it has state\/adamw/,
    )
  })

  it('is possible after a cancellation, which leaves a checkpoint', async () => {
    const [files, abort] = [inMemory(), new AbortController()]
    const steps = options(12, files, { signal: abort.signal, checkpoints: { files, every: 100 } })
    const run = async () => {
      for await (const { step } of trainSteps(steps)) if (step === 5) abort.abort()
    }
    await expect(run()).rejects.toThrow(CancelledError)
    expect([...files.kept.keys()]).toEqual(['step-000000005'])
    const losses = await lossesOf(options(12, inMemory()))
    const rest = await lossesOf(options(12, files, { checkpoints: { files, every: 100, resume: 'newest' } }))
    expect(rest).toEqual(losses.slice(5))
  })
})

describe('the training loop', () => {
  const line = (extra: Partial<TrainOptions> = {}): TrainOptions => {
    const next = stream(50)
    const x = drawn(next, [64, 3], 2)
    const y = Float32Array.from({ length: 64 }, (_, i) => 2 * (x.data[3 * i] as number) - (x.data[3 * i + 1] as number) + 0.5)
    return {
      model: (inputs, scope) => ({ loss: mse(squeeze(linear(scope, inputs.x as Tensor, 1), 1), inputs.y as Tensor) }),
      data: batches(tensorDataset({ x, y: { dtype: 'float32', shape: [64], data: y } }), { batch: 16, seed: 1 }),
      optimizer: sgd({ momentum: 0.9 }),
      rate: 0.1,
      steps: 60,
      runtime,
      ...extra,
    }
  }

  it('fits a line, tells how it goes, and evaluates', async () => {
    const seen: number[] = []
    const options = line()
    const held = await options.data.next()
    const evaluated: number[] = []
    for await (const p of trainSteps({
      ...options,
      evaluation: { every: 30, run: async (step) => ({ loss: (await step.evaluate(held)).loss }) },
    })) {
      seen.push(p.loss)
      expect(p.secondsLeft).toBeGreaterThanOrEqual(0)
      expect(p.stepsPerSecond).toBeGreaterThan(0)
      if (p.evaluation) evaluated.push(p.evaluation.loss as number)
    }
    expect(seen).toHaveLength(60)
    expect(seen.at(-1)).toBeLessThan(1e-2)
    expect(evaluated).toHaveLength(2)
    expect(evaluated[1]).toBeLessThan(evaluated[0] as number)
  })

  it('averages accumulated gradients like one large batch', async () => {
    const one = await train(line({ steps: 4, data: batches(tensorDataset(await all(line())), { batch: 16 }) }))
    const two = await train(line({ steps: 4, accumulate: 2, data: batches(tensorDataset(await all(line())), { batch: 8 }) }))
    for (const name of one.parameters.names)
      expect(relativeError(two.parameters.get(name).data, one.parameters.get(name).data)).toBeLessThan(1e-6)
  })

  const all = (options: TrainOptions) => batches({ length: 1, batch: () => options.data.next() }, { batch: 1 }).next()

  it('stops when something is not finite, with the step, the tensor and the last good checkpoint', async () => {
    const files = inMemory()
    const broken = line({ checkpoints: { files, every: 4 } })
    const data: BatchSource = {
      ...broken.data,
      get position() {
        return broken.data.position
      },
      async next() {
        const { x, y } = await broken.data.next()
        if (broken.data.position.batch === 3 && broken.data.position.epoch === 1) (x as NDArray<Float32Array>).data[5] = Number.NaN
        return { x, y } as Record<string, NDArray>
      },
    }
    const error = await train({ ...broken, data }).catch((e: unknown) => e)
    expect(error).toBeInstanceOf(NotFiniteError)
    expect((error as Error).message).toBe(
      "Training stopped at step 7 because the input 'x' is not finite; resume from the checkpoint step-000000004, the last good one, with a lower learning rate or clipped gradients.",
    )
    await expect(train(line({ rate: 1e30, steps: 5 }))).rejects.toThrow(
      /Training stopped at step 2 because the loss is not finite; no checkpoint/,
    )
    const root = line({
      model: ({ x }, scope) =>
        sum(
          sqrt(
            mul(relu(scope.parameter('w', [3], () => Float32Array.of(1, 0, 2))), x as Tensor)
              .sum([1])
              .mul(0),
          ),
        ),
    })
    await expect(train(root)).rejects.toThrow(/step 1 because the gradient of 'w' is not finite/)
  })

  it('leaves out updates whose scaled gradients overflow, and finds a scale that they bear', async () => {
    const [plain, scaled] = [await lossesOf(line({ steps: 12 })), [] as number[]]
    let skipped = 0
    for await (const p of trainSteps(line({ steps: 16, lossScale: { initial: 2 ** 68, interval: 1000 } }))) {
      if (p.skipped) skipped++
      else scaled.push(p.loss)
    }
    expect(skipped).toBeGreaterThan(0)
    expect(scaled.length).toBe(16 - skipped)
    expect(scaled.at(-1)).toBeLessThan(plain[2] as number)
  })

  it('trains in float16 with parameters and states in float32', async () => {
    const single = await lossesOf(line({ steps: 30 }))
    const half = await lossesOf(line({ steps: 30, compute: 'float16', lossScale: { initial: 1024 } }))
    for (const [i, loss] of half.entries()) expect(Math.abs(loss - (single[i] as number))).toBeLessThan(0.02 * (single[0] as number))
  })

  it('makes no arrays of its own from step to step', async () => {
    const options = line()
    const inputs = { x: { dtype: 'float32', shape: [16, 3] }, y: { dtype: 'float32', shape: [16] } } as const
    const { parameters } = await train({ ...options, steps: 1 })
    const step = await TrainingStep.of({ ...options, inputs, parameters }, runtime)
    const [states, weight] = [{ ...step.states }, parameters.get('weight').data]
    const batch = await options.data.next()
    const external = () => process.memoryUsage().external + process.memoryUsage().arrayBuffers
    for (let i = 1; i <= 50; i++) await step.update(batch, { rate: 0.01, step: i })
    globalThis.gc?.()
    const before = external()
    for (let i = 1; i <= 300; i++) await step.update(batch, { rate: 0.01, step: i })
    expect(parameters.get('weight').data).toBe(weight)
    for (const [key, state] of Object.entries(step.states)) expect(state).toBe(states[key])
    expect(external() - before).toBeLessThan(4e6)
  })

  it('refuses what makes no sense, in a sentence', async () => {
    await expect(train(line({ steps: 0 }))).rejects.toThrow(UsageError)
    await expect(train(line({ model: ({ x }) => sum(x as Tensor) }))).rejects.toThrow('There is nothing to train')
    await expect(train(line({ model: ({ x }, scope) => linear(scope, x as Tensor, 1) }))).rejects.toThrow('A loss must be a scalar')
    await expect(train(line({ rate: () => Number.NaN }))).rejects.toThrow('The schedule gave the learning rate NaN')
    await expect(train(line({ hooks: { nothing: {} } }))).rejects.toThrow("no parameter 'nothing'")
  })
})
