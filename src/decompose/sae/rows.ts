/** @file Rows of activations to train and evaluate autoencoders on, from memory or from disk; `live-rows.ts` has those that a model makes on the way. */
import { ShapeError, UsageError } from '../../base/errors.ts'
import { type NDArray, sizeOf } from '../../base/types.ts'
import type { ActivationStore } from '../../explore/index.ts'
import { type BatchSource, type DataPosition, RandomStream } from '../../nn/index.ts'

/** A stream of rows, the same in the same epoch every time. */
export interface RowStream {
  /** Numbers in a row. */
  readonly width: number
  /** Facts for a record. */
  readonly facts: Readonly<Record<string, unknown>>
  /** Rows of an epoch in pieces, [count · width] each, after the first `skip` rows. */
  rows(epoch: number, skip: number): AsyncGenerator<Float32Array>
}

/** Rows in memory, [rows, width], in another order each epoch. */
export function memoryRows(values: NDArray, seed: number): RowStream {
  const width = sizeOf(values.shape.slice(1))
  const count = values.shape[0] ?? 0
  if (!(values.data instanceof Float32Array) || count === 0)
    throw new ShapeError(`Training needs float32 rows, not ${values.dtype} of shape [${values.shape.join(', ')}].`)
  const data = values.data
  return {
    width,
    facts: { source: 'memory', rows: count },
    async *rows(epoch, skip) {
      const order = RandomStream.named(seed, `epoch ${epoch}`).permutation(count)
      const step = Math.max(1, Math.floor((1 << 20) / width))
      for (let from = skip; from < count; from += step) {
        const part = order.subarray(from, Math.min(count, from + step))
        yield picked(data, width, part)
      }
    },
  }
}

/** The rows of `order`, one after the other. */
export function picked(data: Float32Array, width: number, order: ArrayLike<number>): Float32Array {
  const out = new Float32Array(order.length * width)
  for (let i = 0; i < order.length; i++) out.set(data.subarray((order[i] as number) * width, ((order[i] as number) + 1) * width), i * width)
  return out
}

/** Rows that `capture` has written, mixed by the store's own buffer. */
export function storedRows(store: ActivationStore, site: string, seed: number, bufferTokens?: number): RowStream {
  const record = store.site(site)
  const width = sizeOf(record.shape)
  return {
    width,
    facts: { source: store.folder, site, rows: store.tokens, model: store.manifest.model },
    async *rows(epoch, skip) {
      let left = skip
      const options = { site, batch: 4096, seed: seed + epoch, ...(bufferTokens === undefined ? {} : { bufferTokens }) }
      for await (const { values } of store.shuffled(options)) {
        const count = values.shape[0] as number
        const from = Math.min(left, count)
        left -= from
        if (from < count) yield values.data.subarray(from * width)
      }
    },
  }
}

/** Batches of a stream under the name `x`, [batch, width]; what is left over at the end of an epoch is let go. */
export function batchesOf(stream: RowStream, batch: number): BatchSource {
  let position: DataPosition = { epoch: 0, batch: 0 }
  let open: { iterator: AsyncGenerator<Float32Array>; piece: Float32Array; at: number } | undefined
  const { width } = stream
  async function fill(out: Float32Array): Promise<boolean> {
    open ??= { iterator: stream.rows(position.epoch, position.batch * batch), piece: new Float32Array(0), at: 0 }
    for (let to = 0; to < out.length; ) {
      if (open.at === open.piece.length) {
        const next = await open.iterator.next()
        if (next.done) return false
        open = { iterator: open.iterator, piece: next.value, at: 0 }
        continue
      }
      const n = Math.min(out.length - to, open.piece.length - open.at)
      out.set(open.piece.subarray(open.at, open.at + n), to)
      open.at += n
      to += n
    }
    return true
  }
  return {
    get position() {
      return position
    },
    seek(to) {
      if (to.epoch === position.epoch && to.batch === position.batch) return
      void open?.iterator.return(undefined)
      open = undefined
      position = to
    },
    async next() {
      const data = new Float32Array(batch * width)
      if (!(await fill(data))) {
        if (position.batch === 0)
          throw new UsageError(`The data holds fewer rows than one batch of ${batch}; give more, or a smaller batch.`)
        open = undefined
        position = { epoch: position.epoch + 1, batch: 0 }
        if (!(await fill(data)))
          throw new UsageError(`The data holds fewer rows than one batch of ${batch}; give more, or a smaller batch.`)
      }
      position = { epoch: position.epoch, batch: position.batch + 1 }
      return { x: { dtype: 'float32', shape: [batch, width], data } }
    },
  }
}
