/** @file Work of which Node and a browser tab must find the same figures; it runs in both, unchanged. */
import { memoryRows } from '../../../src/decompose/sae/rows.ts'
import { trainSae } from '../../../src/decompose/sae/train.ts'
import {
  adamW,
  addPositions,
  batches as batchesOf,
  crossEntropy,
  embedding,
  layerNormed,
  linear,
  RandomStream,
  type RuntimeOptions,
  type Scope,
  tensorDataset,
  trainSteps,
  transformerBlock,
} from '../../../src/nn/index.ts'
import type { Model } from '../../../src/run/model.ts'
import { add, scale } from '../../../src/sites/index.ts'
import type { Tensor } from '../../../src/tensor/index.ts'

/** Arrays by name. */
export type Figures = Record<string, number[]>

/** A text in which rows of different lengths are padded. */
export const rows = [
  [5, 17, 3, 44, 29, 8, 31],
  [9, 2, 40],
]

const listOf = (data: ArrayLike<number>) => Array.from(data, Number)

/** Logits, taps, attention, a steered run, a gradient, and what the model writes. */
export async function modelFigures(model: Model): Promise<Figures> {
  const last = model.spec.layers - 1
  const { logits, taps } = await model.run({ rows }, { taps: [`resid_post.${last}`, 'attn_probs.0', 'mlp_out.0'] })
  const vector = Float32Array.from({ length: model.spec.dModel }, (_, i) => Math.sin(i))
  const steered = model.with([add('resid_post.0', vector, { scale: 2 }), scale('mlp_out.1', 0.5)])
  const changed = await steered.run({ rows })
  const gradient = await model.gradient({ of: { kind: 'next-token' }, at: ['resid_post.0', 'z.1'] }, { rows })
  const tokensOf = async (m: Model) =>
    (await m.generate({ ids: rows[0] as number[] }, { maxNewTokens: 16, temperature: 0 }).result()).tokens
  return {
    logits: listOf(logits.data),
    ...Object.fromEntries(Object.entries(taps).map(([site, value]) => [site, listOf((value as { data: Float32Array }).data)])),
    steered: listOf(changed.logits.data),
    loss: [gradient.value],
    ...Object.fromEntries(Object.entries(gradient.sites).map(([site, value]) => [`grad.${site}`, listOf(value.data)])),
    tokens: listOf(await tokensOf(model)),
    'steered tokens': listOf(await tokensOf(steered)),
  }
}

const [vocab, width, hidden, batch, length] = [17, 16, 32, 4, 8]

/** Losses of a small transformer that learns to copy. */
export async function transformerLosses(runtime: RuntimeOptions): Promise<number[]> {
  const random = RandomStream.named(7, 'data')
  const ids = BigInt64Array.from({ length: 16 * length }, () => BigInt(Math.floor(random.next() * vocab)))
  const data = { dtype: 'int64', shape: [16, length], data: ids } as const
  const forward = (x: Readonly<Record<string, Tensor>>, scope: Scope): Tensor => {
    let h = addPositions(scope.in('position'), embedding(scope.in('embed'), x.ids as Tensor, vocab, width), length)
    for (let i = 0; i < 2; i++) h = transformerBlock(scope.in(`block${i}`), h, { attention: { heads: 2 }, mlp: { hidden } })
    return crossEntropy(linear(scope.in('head'), layerNormed(scope.in('norm'), h), vocab), x.targets as Tensor)
  }
  const losses: number[] = []
  const source = batchesOf(tensorDataset({ ids: data, targets: data }), { batch, seed: 3 })
  const options = { model: forward, data: source, steps: 6, rate: 0.01, optimizer: adamW(), seed: 1, runtime }
  for await (const done of trainSteps(options)) losses.push(done.loss)
  return losses
}

/** Losses of a small sparse autoencoder. */
export async function saeLosses(threads?: number): Promise<number[]> {
  const random = RandomStream.named(5, 'rows')
  const data = Float32Array.from({ length: 256 * 16 }, () => random.next() - 0.5)
  const losses: number[] = []
  await trainSae({
    rows: memoryRows({ dtype: 'float32', shape: [256, 16], data }, 2),
    kind: 'topk',
    width: 48,
    k: 4,
    batch: 64,
    steps: 8,
    seed: 1,
    ...(threads === undefined ? {} : { threads }),
    onStep: (at) => losses.push(at.loss),
  })
  return losses
}
