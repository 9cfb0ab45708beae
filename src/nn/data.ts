/** @file Data for training: sets of examples, and sources that hand out batches in an order that a seed and a position determine. */
import { ShapeError, UsageError } from '../base/errors.ts'
import { type NDArray, sizeOf, type TypedArray } from '../base/types.ts'
import { RandomStream } from './random.ts'
import type { Batch } from './step.ts'

/** Examples that can be picked by number. */
export interface Dataset {
  readonly length: number
  /** The examples of these numbers as one batch. */
  batch(indices: ArrayLike<number>): Batch | Promise<Batch>
}

/** Where a source stands: JSON. */
export interface DataPosition {
  readonly epoch: number
  /** Batches of this epoch that were handed out. */
  readonly batch: number
}

/** Hands out batches without end. */
export interface BatchSource {
  /** Where the next batch comes from. */
  readonly position: DataPosition
  /** Goes to a position: the batches from there on are the same as they were. */
  seek(position: DataPosition): void
  next(): Promise<Batch>
}

/** Arrays of one first axis as a set of examples. */
export function tensorDataset(arrays: Readonly<Record<string, NDArray>>): Dataset {
  const lengths = new Set(Object.values(arrays).map((a) => a.shape[0]))
  const [length] = lengths
  if (lengths.size !== 1 || length === undefined)
    throw new ShapeError(
      `The tensors of a data set must have one first axis, not ${Object.entries(arrays)
        .map(([n, a]) => `${n} [${a.shape.join(', ')}]`)
        .join(' and ')}.`,
    )
  return {
    length,
    batch: (indices) => Object.fromEntries(Object.entries(arrays).map(([name, array]) => [name, rowsOf(array, indices)])),
  }
}

/** Copies of rows of the first axis. */
function rowsOf({ dtype, shape, data }: NDArray, indices: ArrayLike<number>): NDArray {
  const rest = shape.slice(1)
  const width = sizeOf(rest)
  const out = new (data.constructor as new (n: number) => TypedArray)(indices.length * width)
  for (let i = 0; i < indices.length; i++) {
    const from = (indices[i] as number) * width
    // The two are of one class, which TypeScript cannot see.
    ;(out as Float32Array).set((data as Float32Array).subarray(from, from + width), i * width)
  }
  return { dtype, shape: [indices.length, ...rest], data: out }
}

/** How texts become blocks of tokens. */
export interface PackOptions {
  /** Positions of a block. */
  readonly length: number
  /** Token put between texts, such as the end-of-text token. */
  readonly separator?: number
}

/**
 * Texts packed one after another into blocks without padding: `ids` and `targets` int64 [batch, pos], the target being the
 * next token. What is left over at the end is let go.
 */
export function packedTokens(texts: Iterable<ArrayLike<number>>, { length, separator }: PackOptions): Dataset {
  if (!Number.isInteger(length) || length < 1) throw new UsageError(`Blocks of tokens must be at least one position long, not ${length}.`)
  let tokens = new Int32Array(1 << 12)
  let count = 0
  const push = (id: number) => {
    if (count === tokens.length) {
      const larger = new Int32Array(2 * count)
      larger.set(tokens)
      tokens = larger
    }
    tokens[count++] = id
  }
  for (const text of texts) {
    for (let i = 0; i < text.length; i++) push(text[i] as number)
    if (separator !== undefined) push(separator)
  }
  const blocks = Math.floor((count - 1) / length)
  if (blocks < 1)
    throw new UsageError(
      `The texts have ${count} tokens, too few for one block of ${length} and its next token; give more text or shorter blocks.`,
    )
  return {
    length: blocks,
    batch: (indices) => {
      const block = (shift: number): NDArray => {
        const data = new BigInt64Array(indices.length * length)
        for (let i = 0; i < data.length; i++)
          data[i] = BigInt(tokens[(indices[Math.floor(i / length)] as number) * length + (i % length) + shift] as number)
        return { dtype: 'int64', shape: [indices.length, length], data }
      }
      return { ids: block(0), targets: block(1) }
    },
  }
}

/** How examples become batches. */
export interface BatchOptions {
  readonly batch: number
  /** Seed of the order, which is another one in each epoch; without it the examples keep their order. */
  readonly seed?: number
}

/** Batches of equal size of a data set, epoch after epoch; what is left over at the end of an epoch is let go. */
export function batches(data: Dataset, { batch, seed }: BatchOptions): BatchSource {
  const perEpoch = Math.floor(data.length / batch)
  if (!Number.isInteger(batch) || batch < 1 || perEpoch < 1)
    throw new UsageError(`${data.length} examples do not make one batch of ${batch}; choose a batch from 1 to ${data.length}.`)
  let position: DataPosition = { epoch: 0, batch: 0 }
  let order: { epoch: number; indices: Uint32Array } | undefined
  const orderOf = (epoch: number) => {
    if (order?.epoch !== epoch) {
      const indices =
        seed === undefined
          ? Uint32Array.from({ length: data.length }, (_, i) => i)
          : RandomStream.named(seed, `epoch ${epoch}`).permutation(data.length)
      order = { epoch, indices }
    }
    return order.indices
  }
  return {
    get position() {
      return position
    },
    seek(to) {
      if (!(Number.isInteger(to.epoch) && Number.isInteger(to.batch) && to.epoch >= 0 && to.batch >= 0 && to.batch <= perEpoch))
        throw new UsageError(
          `There is no position ${JSON.stringify(to)} in data of ${perEpoch} batches an epoch; resume with the same data.`,
        )
      position = to
    },
    async next() {
      const { epoch, batch: at } = position.batch < perEpoch ? position : { epoch: position.epoch + 1, batch: 0 }
      position = { epoch, batch: at + 1 }
      return data.batch(orderOf(epoch).subarray(at * batch, (at + 1) * batch))
    },
  }
}

/** A source whose next batches are made while the present one is used; its position is that of what was taken. */
export function prefetched(source: BatchSource, ahead = 2): BatchSource {
  let queue: { batch: Promise<Batch>; after: DataPosition }[] = []
  let position = source.position
  const fill = () => {
    while (queue.length < ahead) {
      const batch = source.next()
      // Told when it is taken; until then it must not count as unhandled.
      batch.catch(() => undefined)
      queue.push({ batch, after: source.position })
    }
  }
  return {
    get position() {
      return position
    },
    seek(to) {
      queue = []
      source.seek(to)
      position = source.position
    },
    async next() {
      fill()
      const first = queue.shift() as { batch: Promise<Batch>; after: DataPosition }
      fill()
      const batch = await first.batch
      position = first.after
      return batch
    },
  }
}
