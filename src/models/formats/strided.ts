/** @file Tensors whose elements do not lie in row-major order: seen through a source that puts them in order. */
import { type ByteSource, checkRange } from './bytes.ts'

/** How the elements of a tensor, at least one, lie in a source: strides count elements. */
export interface StridedLayout {
  readonly shape: readonly number[]
  readonly strides: readonly number[]
  /** Byte where the first element lies. */
  readonly offset: number
  /** Bytes of an element: 1, 2, 4 or 8. */
  readonly elementSize: number
}

/** Whether elements lie one after the other in row-major order. */
export function isContiguous(shape: readonly number[], strides: readonly number[]): boolean {
  let expected = 1
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    if (shape[axis] === 0) return true
    if (shape[axis] !== 1 && strides[axis] !== expected) return false
    expected *= shape[axis]!
  }
  return true
}

/**
 * The elements of a strided tensor in row-major order. The first read loads the part of `source` over which they are spread and
 * orders them all; they are kept until the last byte was read, so that reading piece by piece does not order them again and again.
 */
export function stridedSource(source: ByteSource, name: string, layout: StridedLayout): ByteSource {
  let ordered: Promise<Uint8Array<ArrayBuffer>> | undefined
  const strided: ByteSource = {
    name,
    size: layout.shape.reduce((n, d) => n * d, layout.elementSize),
    async read(offset, length) {
      checkRange(strided, offset, length)
      ordered ??= gather(source, layout)
      const bytes = await ordered
      if (offset + length === strided.size) ordered = undefined
      return length === strided.size ? bytes : bytes.slice(offset, offset + length)
    },
    close: () => source.close(),
  }
  return strided
}

const words: Readonly<Record<number, Uint8ArrayConstructor | Uint16ArrayConstructor | Uint32ArrayConstructor>> = {
  1: Uint8Array,
  2: Uint16Array,
  4: Uint32Array,
}

async function gather(source: ByteSource, layout: StridedLayout): Promise<Uint8Array<ArrayBuffer>> {
  // Eight bytes are moved as two words, because as a float64 their bits might change.
  if (layout.elementSize === 8) {
    const strides = [...layout.strides.map((stride) => stride * 2), 1]
    return gather(source, { ...layout, shape: [...layout.shape, 2], strides, elementSize: 4 })
  }
  const { shape, strides, offset, elementSize } = layout
  const count = shape.reduce((n, d) => n * d, 1)
  const extent = shape.reduce((n, d, axis) => n + (d - 1) * strides[axis]!, 1)
  const spread = await source.read(offset, extent * elementSize)
  const out = new Uint8Array(count * elementSize)
  const Word = words[elementSize]!
  const from = new Word(spread.buffer)
  const to = new Word(out.buffer)
  const width = shape.at(-1) ?? 1
  const step = strides.at(-1) ?? 1
  const index = new Array<number>(shape.length).fill(0)
  for (let at = 0, row = 0; at < count; at += width) {
    for (let i = 0, place = row; i < width; i++, place += step) to[at + i] = from[place]!
    for (let axis = shape.length - 2; axis >= 0; axis--) {
      row += strides[axis]!
      if (++index[axis]! < shape[axis]!) break
      row -= shape[axis]! * strides[axis]!
      index[axis] = 0
    }
  }
  return out
}
