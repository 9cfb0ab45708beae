/** @file For tests only: models whose activations are planted, a tokenizer of numbers, the recorded values of other libraries. */
import { readFileSync } from 'node:fs'
import { expect } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { encodeSafetensors, fromBytes, openSafetensors } from '../models/formats/index.ts'
import { hasShared, shared } from '../models/formats/testing.ts'
import { randomStream } from '../models/sampling.ts'
import type { Tokenizer } from '../models/text/tokenizer.ts'
import { assemble } from '../run/load.ts'
import type { Model } from '../run/model.ts'
import { tinyLlama, tinyTensors } from '../run/testing.ts'

/** Encodes `'5 6 7'` as the ids 5, 6, 7 after a 1 that begins every text. */
export const numberTokenizer: Tokenizer = {
  vocabSize: 12,
  bos: 1,
  eosIds: [],
  special: new Map([[1, '<s>']]),
  encode: (text) => [1, ...text.split(' ').filter(Boolean).map(Number)],
  decode: (ids) => ids.join(' '),
  piece: String,
  offsets: (text) => ({ ids: numberTokenizer.encode(text), offsets: [] }),
  idOf: () => undefined,
}

/** The hash that the models of {@link plantedModel} have. */
export const plantedHash = 'a'.repeat(64)

/** A two-layer model whose site `embeddings` is `rows[id]` at a token `id`; with a tokenizer of numbers where asked for. */
export async function plantedModel(
  rows: readonly (readonly number[])[],
  options: { tokenizer?: boolean; hash?: string } = {},
): Promise<Model> {
  const width = (rows[0] as readonly number[]).length
  const config = {
    ...tinyLlama,
    hidden_size: width,
    num_hidden_layers: 2,
    head_dim: 8,
    vocab_size: rows.length,
  }
  const tensors: Record<string, NDArray> = {
    ...tinyTensors(config),
    'model.embed_tokens.weight': { dtype: 'float32', shape: [rows.length, width], data: Float32Array.from(rows.flat()) },
  }
  const store = await openSafetensors(fromBytes(encodeSafetensors(tensors)))
  const opened = { id: 'planted', hash: async () => options.hash ?? plantedHash, store, config }
  return assemble(options.tokenizer ? { ...opened, tokenizer: numberTokenizer } : opened, { threads: 1 })
}

/** Rows of standard normal numbers, reproducible. */
export function gaussianRows(count: number, width: number, seed = 1): number[][] {
  const random = randomStream(seed)
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random())
  return Array.from({ length: count }, () => Array.from({ length: width }, normal))
}

/** Examples of one token each. */
export const tokens = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => [from + i])

/** Euclidean length. */
export const length = (v: ArrayLike<number>) => Math.sqrt(Array.from(v).reduce((s, x) => s + x * x, 0))

/** Cosine of the angle between two vectors. */
export function cosine(a: ArrayLike<number>, b: ArrayLike<number>): number {
  return Array.from(a).reduce((s, x, i) => s + x * (b[i] as number), 0) / (length(a) * length(b))
}

/** Largest difference relative to the largest value of what is wanted. */
export function relativeError(ours: ArrayLike<number>, wanted: ArrayLike<number>): number {
  expect(ours.length).toBe(wanted.length)
  let [error, top] = [0, 0]
  for (let i = 0; i < wanted.length; i++) {
    error = Math.max(error, Math.abs((ours[i] as number) - (wanted[i] as number)))
    top = Math.max(top, Math.abs(wanted[i] as number))
  }
  return error / top
}

/** Whether the recorded values of other libraries are there; tests that need them are skipped, visibly, where they are not. */
export const hasGoldens = hasShared('goldens/vectors')

/** Path of a file of the recorded values. */
export const golden = (path: string) => shared(`goldens/${path}`)

/** A recorded JSON file. */
export const goldenJson = <T>(path: string): T => JSON.parse(readFileSync(golden(path), 'utf8')) as T

/** One of the tiny recorded models. */
export async function goldenModel(name: string): Promise<Model> {
  const store = await openSafetensors(golden(`${name}/model.safetensors`))
  return assemble({ id: name, hash: async () => name, store, config: goldenJson(`${name}/config.json`) }, { threads: 1 })
}

/** `'1 5 64'` as ids. */
export const idsOf = (text: string) => text.split(' ').map(Number)
