/** @file Choosing the next token from logits: greedy, or sampled with temperature, top-k, top-p and min-p; penalties on tokens that are there already. */
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
  /** Taken from the logits of tokens that were written already; the prompt does not count. */
  readonly presencePenalty?: number
  /** Taken from the logits of written tokens, once for each time; the prompt does not count. */
  readonly frequencyPenalty?: number
  readonly seed?: number
  /**
   * Row b draws from a stream of its own, of the seed `seed + b` (`row`, the default: what a row draws does not depend on the others), or all rows draw from
   * the one stream of `seed` in turn (`shared`).
   */
  readonly randomness?: 'row' | 'shared'
}

/** Refuses settings outside their ranges. */
export function checkSampling(o: SamplingOptions): void {
  const ranges: readonly [keyof SamplingOptions, number, number, string][] = [
    ['temperature', 0, Number.MAX_VALUE, 'at least 0'],
    ['topK', 1, Number.MAX_SAFE_INTEGER, 'at least 1'],
    ['topP', Number.MIN_VALUE, 1, 'above 0 and at most 1'],
    ['minP', 0, 1, 'between 0 and 1'],
    ['repetitionPenalty', Number.MIN_VALUE, Number.MAX_VALUE, 'above 0'],
    ['presencePenalty', -Number.MAX_VALUE, Number.MAX_VALUE, 'a finite number'],
    ['frequencyPenalty', -Number.MAX_VALUE, Number.MAX_VALUE, 'a finite number'],
  ]
  for (const [key, low, high, words] of ranges) {
    const v = o[key] as number | undefined
    if (v !== undefined && !(v >= low && v <= high)) throw new UsageError(`${key} must be ${words}, not ${v}.`)
  }
  for (const key of ['topK', 'seed'] as const)
    if (o[key] !== undefined && !Number.isInteger(o[key])) throw new UsageError(`${key} must be an integer, not ${o[key]}.`)
  if (o.randomness !== undefined && !['row', 'shared'].includes(o.randomness))
    throw new UsageError(`randomness must be 'row' or 'shared', not ${JSON.stringify(o.randomness)}.`)
}

/** Applies the penalties of a row in place. @param seen ids of the row so far @param prompt how many of them are the prompt's */
export function penalise(logits: Float32Array, o: SamplingOptions, seen: readonly number[], prompt: number): void {
  const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = o
  if (repetitionPenalty !== 1)
    for (const id of new Set(seen))
      logits[id] = (logits[id] as number) > 0 ? (logits[id] as number) / repetitionPenalty : (logits[id] as number) * repetitionPenalty
  if (presencePenalty === 0 && frequencyPenalty === 0) return
  const counts = new Map<number, number>()
  for (const id of seen.slice(prompt)) counts.set(id, (counts.get(id) ?? 0) + 1)
  for (const [id, count] of counts) logits[id] = (logits[id] as number) - presencePenalty - frequencyPenalty * count
}

/** A stream of uniform numbers in [0, 1), the same for a seed everywhere. */
export function randomStream(seed: number): () => number {
  const stream = RandomStream.of(seed)
  return () => stream.next()
}

/** Logarithm of the sum of exponentials. */
export function logSumExp(x: Float32Array): number {
  let top = Number.NEGATIVE_INFINITY
  for (const v of x) if (v > top) top = v
  let sum = 0
  for (const v of x) sum += Math.exp(v - top)
  return top + Math.log(sum)
}

/** Ids of the largest values, largest first; the lower id first where they are equal. */
export function likeliest(values: Float32Array, count: number): number[] {
  const best: number[] = []
  for (let id = 0; id < values.length; id++) {
    const v = values[id] as number
    if (best.length === count && !(v > (values[best[count - 1] as number] as number))) continue
    let at = best.length
    while (at > 0 && v > (values[best[at - 1] as number] as number)) at--
    best.splice(at, 0, id)
    if (best.length > count) best.pop()
  }
  return best
}

/** Index of the largest logit; the first one where several are equal. */
export function greedy(logits: Float32Array): number {
  let best = 0
  for (let i = 1; i < logits.length; i++) if ((logits[i] as number) > (logits[best] as number)) best = i
  return best
}

/** A token that may be drawn, and its probability. */
export interface Candidate {
  readonly id: number
  readonly probability: number
}

/** Streams for the rows of a batch: one each, or the same one for all of them, which rows then draw from in turn. */
export function randomStreams(options: SamplingOptions, rows: number): (() => number)[] {
  const seed = options.seed ?? 0
  if (options.randomness === 'shared') return new Array<() => number>(rows).fill(randomStream(seed))
  return Array.from({ length: rows }, (_, row) => randomStream(seed + row))
}

/** Chooses tokens for one row. */
export class Sampler {
  private readonly options: SamplingOptions
  private readonly random: () => number

  constructor(options: SamplingOptions, random: () => number) {
    this.options = options
    this.random = random
  }

  /** Whether the likeliest token is always taken. */
  get isGreedy(): boolean {
    return (this.options.temperature ?? 0) === 0
  }

  /** A number in [0, 1) of this row's stream. */
  next(): number {
    return this.random()
  }

  /** The next token. */
  choose(logits: Float32Array): number {
    return this.isGreedy ? greedy(logits) : this.draw(this.candidates(logits))
  }

  /** One of the candidates, whose weights need not add up to one. */
  draw(candidates: readonly Candidate[]): number {
    let total = 0
    for (const c of candidates) total += c.probability
    let at = this.random() * total
    for (const c of candidates) {
      at -= c.probability
      if (at < 0) return c.id
    }
    return (candidates.at(-1) as Candidate).id
  }

  /** Tokens that may be drawn with their probabilities after temperature and filters; greedily the one that is taken. */
  distribution(logits: Float32Array): Candidate[] {
    if (this.isGreedy) return [{ id: greedy(logits), probability: 1 }]
    const kept = this.candidates(logits)
    const total = kept.reduce((sum, k) => sum + k.probability, 0)
    return kept.map(({ id, probability }) => ({ id, probability: probability / total }))
  }

  /** Tokens that may be drawn with their unnormalised probabilities, most likely first where an order is needed. */
  private candidates(logits: Float32Array): Candidate[] {
    const { temperature = 0, topK, topP, minP } = this.options
    const top = logits[greedy(logits)] as number
    // exp(-30) is below the resolution of the draw: leaving those out spares sorting the whole vocabulary.
    const floor = Math.max(Math.exp(-30), minP ?? 0)
    const all: Candidate[] = []
    for (let id = 0; id < logits.length; id++) {
      const probability = Math.exp(((logits[id] as number) - top) / temperature)
      if (probability >= floor) all.push({ id, probability })
    }
    if (topK === undefined && (topP === undefined || topP === 1)) return all
    all.sort((x, y) => y.probability - x.probability || x.id - y.id)
    const kept = topK === undefined ? all : all.slice(0, topK)
    if (topP === undefined || topP === 1) return kept
    const total = kept.reduce((sum, k) => sum + k.probability, 0)
    let sum = 0
    const end = kept.findIndex((k) => {
      sum += k.probability
      return sum >= topP * total
    })
    return end < 0 ? kept : kept.slice(0, end + 1)
  }
}
