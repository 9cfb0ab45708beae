/** @file Rows of activations straight from a model that reads a corpus. */
import { throwIfCancelled, UsageError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import { type PassRow, rowsOf } from '../../explore/capture-pass.ts'
import { type CorpusInput, openCorpus, type Packing } from '../../explore/index.ts'
import { RandomStream } from '../../nn/index.ts'
import type { Model } from '../../run/index.ts'
import { widthOf } from '../../steer/vector.ts'
import { picked, type RowStream } from './rows.ts'

/** How activations are made on the way. */
export interface LiveOptions {
  readonly data: CorpusInput
  readonly site: string
  readonly seed: number
  readonly packing?: Packing
  /** Longest row of tokens (default: the model's context, at most 256). */
  readonly context?: number
  /** Tokens, padding included, in one forward pass (default 1024). */
  readonly batchTokens?: number
  /** Activations that are mixed at a time (default 65,536): half of them from before, half new. */
  readonly bufferTokens?: number
  /** Leaves out positions of the token that begins every text, whose activations are far larger than all others (default true). */
  readonly dropBos?: boolean
  readonly signal?: AbortSignal | undefined
}

/** Rows of tokens that are run together. */
interface Chunk {
  readonly rows: readonly PassRow[]
  /** Columns of each row that are kept. */
  readonly columns: readonly (readonly number[])[]
  readonly count: number
}

/**
 * Activations of a site while a model reads a corpus. Each chunk is shuffled; what is served is half of the chunk before and half of this
 * one, mixed, so that an order depends on two chunks only and any place of the stream can be gone to without running the model up to it.
 */
export async function liveRows(model: Model, options: LiveOptions): Promise<RowStream> {
  const info = model.site(options.site)
  const width = widthOf(model, info)
  const context = options.context ?? Math.min(256, model.contextLength)
  if (!(Number.isInteger(context) && context > 1 && context <= model.contextLength))
    throw new UsageError(`The context must be from 2 to ${model.contextLength} tokens, not ${context}.`)
  const { seed, packing = 'pad', batchTokens = 1024, bufferTokens = 2 ** 16, dropBos = true, signal } = options
  for (const [name, n] of Object.entries({ batchTokens, bufferTokens }))
    if (!(Number.isInteger(n) && n > 0)) throw new UsageError(`${name} must be a positive whole number, not ${n}.`)
  const corpus = await openCorpus(options.data, signal ? { signal } : {})
  const bos = dropBos && model.hasTokenizer ? model.tokenizer.bos : undefined
  const size = Math.max(1, Math.floor(bufferTokens / 2))

  async function* chunks(): AsyncGenerator<Chunk> {
    let rows: PassRow[] = []
    let columns: number[][] = []
    let count = 0
    for await (const row of rowsOf(model, corpus, { context, packing }, { document: 0, token: 0 })) {
      const kept = row.ids.flatMap((id, c) => (id === bos ? [] : [c]))
      rows.push(row)
      columns.push(kept)
      count += kept.length
      if (count < size) continue
      yield { rows, columns, count }
      ;[rows, columns, count] = [[], [], 0]
    }
    if (count > 0) yield { rows, columns, count }
  }

  async function run(chunk: Chunk): Promise<Float32Array> {
    const out = new Float32Array(chunk.count * width)
    const starts: number[] = []
    let at = 0
    for (const c of chunk.columns) {
      starts.push(at)
      at += c.length
    }
    const order = chunk.rows
      .map((_, i) => i)
      .sort((a, b) => (chunk.rows[b] as PassRow).ids.length - (chunk.rows[a] as PassRow).ids.length || a - b)
    for (let i = 0; i < order.length; ) {
      throwIfCancelled(signal)
      const longest = (chunk.rows[order[i] as number] as PassRow).ids.length
      const batch = order.slice(i, i + Math.max(1, Math.floor(batchTokens / longest)))
      const { taps } = await model.run({ rows: batch.map((r) => (chunk.rows[r] as PassRow).ids) }, { taps: [info.site], logits: false })
      const { data, shape } = taps[info.site] as unknown as NDArray<Float32Array>
      const positions = shape[1] as number
      for (const [b, r] of batch.entries()) {
        let to = (starts[r] as number) * width
        for (const c of chunk.columns[r] as readonly number[]) {
          const from = (b * positions + c) * width
          out.set(data.subarray(from, from + width), to)
          to += width
        }
      }
      i += batch.length
    }
    return out
  }

  // The beginning is read several times: for the scale, for the median, for the first step.
  const made = new Map<string, Promise<Float32Array>>()
  const shuffled = (chunk: Chunk, epoch: number, index: number): Promise<Float32Array> => {
    const name = `epoch ${epoch} chunk ${index}`
    const known = made.get(name)
    if (known) return known
    const values = run(chunk).then((all) => picked(all, width, RandomStream.named(seed, name).permutation(chunk.count)))
    values.catch(() => made.delete(name))
    for (const old of [...made.keys()].slice(0, -1)) made.delete(old)
    made.set(name, values)
    return values
  }

  return {
    width,
    facts: {
      source: 'model',
      model: model.origin.id,
      site: info.site,
      data: corpus.facts,
      context,
      packing,
      bufferTokens,
      dropBos: bos !== undefined,
    },
    async *rows(epoch, skip) {
      let left = skip
      let before: { count: number; values: () => Promise<Float32Array> } | undefined
      let index = 0
      const serve = async (parts: readonly Float32Array[], name: string) => {
        const all = joined(parts)
        return picked(all, width, RandomStream.named(seed, `epoch ${epoch} ${name}`).permutation(all.length / width))
      }
      for await (const chunk of chunks()) {
        const number = index++
        const values = () => shuffled(chunk, epoch, number)
        const [old, half] = [before ? before.count - Math.floor(before.count / 2) : 0, Math.floor(chunk.count / 2)]
        if (left >= old + half) left -= old + half
        else {
          const kept = before ? [(await before.values()).subarray((before.count - old) * width)] : []
          const block = await serve([...kept, (await values()).subarray(0, half * width)], `mix ${number}`)
          yield block.subarray(left * width)
          left = 0
        }
        before = { count: chunk.count, values }
      }
      const rest = before ? before.count - Math.floor(before.count / 2) : 0
      if (before && left < rest)
        yield (await serve([(await before.values()).subarray((before.count - rest) * width)], 'end')).subarray(left * width)
    },
  }
}

function joined(parts: readonly Float32Array[]): Float32Array {
  const out = new Float32Array(parts.reduce((n, p) => n + p.length, 0))
  let at = 0
  for (const p of parts) {
    out.set(p, at)
    at += p.length
  }
  return out
}
