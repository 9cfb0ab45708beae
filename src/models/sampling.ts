/** @file Choosing the next token from logits: greedy, or sampled with temperature, top-k, top-p, min-p and repetition penalty. */
import { UsageError } from '../base/errors.ts'
import { RandomStream } from '../nn/random.ts'

/** How tokens are chosen. */
export interface SamplingOptions {
  /** 0 (the default) is greedy. */
  readonly temperature?: number
  /** Only the k most likely tokens. */
  readonly topK?: number
  /** Only the smallest set of tokens whose probabilities reach p. */
  readonly topP?: number
  /** Only tokens at least this fraction as likely as the most likely one. */
  readonly minP?: number
  /** Logits of tokens already in the row are divided (or multiplied, when negative) by it; 1 changes nothing. */
  readonly repetitionPenalty?: number
  /** Rows draw from the streams seed, seed + 1, … */
  readonly seed?: number
}

/** Refuses settings outside their ranges. */
export function checkSampling(o: SamplingOptions): void {
  const ranges: readonly [keyof SamplingOptions, number, number, string][] = [
    ['temperature', 0, Number.MAX_VALUE, 'at least 0'],
    ['topK', 1, Number.MAX_SAFE_INTEGER, 'at least 1'],
    ['topP', Number.MIN_VALUE, 1, 'above 0 and at most 1'],
    ['minP', 0, 1, 'between 0 and 1'],
    ['repetitionPenalty', Number.MIN_VALUE, Number.MAX_VALUE, 'above 0'],
  ]
  for (const [key, low, high, words] of ranges) {
    const v = o[key]
    if (v !== undefined && !(v >= low && v <= high)) throw new UsageError(`${key} must be ${words}, not ${v}.`)
  }
  for (const key of ['topK', 'seed'] as const)
    if (o[key] !== undefined && !Number.isInteger(o[key])) throw new UsageError(`${key} must be an integer, not ${o[key]}.`)
}

/** A stream of uniform numbers in [0, 1), the same for a seed everywhere. */
export function randomStream(seed: number): () => number {
  const stream = RandomStream.of(seed)
  return () => stream.next()
}

/** Index of the largest logit; the first one where several are equal. */
export function greedy(logits: Float32Array): number {
  let best = 0
  for (let i = 1; i < logits.length; i++) if ((logits[i] as number) > (logits[best] as number)) best = i
  return best
}

/** Chooses tokens for one row. */
export class Sampler {
  private readonly options: SamplingOptions
  private readonly random: () => number

  constructor(options: SamplingOptions, row: number) {
    this.options = options
    this.random = randomStream((options.seed ?? 0) + row)
  }

  /** The next token; `seen` are the ids of the row so far. Logits are changed in place by the repetition penalty. */
  choose(logits: Float32Array, seen: readonly number[]): number {
    const { temperature = 0, repetitionPenalty = 1 } = this.options
    if (repetitionPenalty !== 1)
      for (const id of new Set(seen))
        logits[id] = (logits[id] as number) > 0 ? (logits[id] as number) / repetitionPenalty : (logits[id] as number) * repetitionPenalty
    if (temperature === 0) return greedy(logits)
    const kept = this.candidates(logits, temperature)
    let total = 0
    for (const k of kept) total += k.weight
    let at = this.random() * total
    for (const k of kept) {
      at -= k.weight
      if (at < 0) return k.id
    }
    return (kept.at(-1) as { id: number }).id
  }

  /** Tokens that may be drawn with their unnormalised probabilities, most likely first where an order is needed. */
  private candidates(logits: Float32Array, temperature: number): { id: number; weight: number }[] {
    const { topK, topP, minP } = this.options
    const top = logits[greedy(logits)] as number
    // exp(-30) is below the resolution of the draw: leaving those out spares sorting the whole vocabulary.
    const floor = Math.max(Math.exp(-30), minP ?? 0)
    const all: { id: number; weight: number }[] = []
    for (let id = 0; id < logits.length; id++) {
      const weight = Math.exp(((logits[id] as number) - top) / temperature)
      if (weight >= floor) all.push({ id, weight })
    }
    if (topK === undefined && (topP === undefined || topP === 1)) return all
    all.sort((x, y) => y.weight - x.weight || x.id - y.id)
    const kept = topK === undefined ? all : all.slice(0, topK)
    if (topP === undefined || topP === 1) return kept
    const total = kept.reduce((sum, k) => sum + k.weight, 0)
    let sum = 0
    const end = kept.findIndex((k) => {
      sum += k.weight
      return sum >= topP * total
    })
    return end < 0 ? kept : kept.slice(0, end + 1)
  }
}
