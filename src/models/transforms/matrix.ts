/** @file Matrices whose rows are made when they are read: of stored tensors, or of other matrices by compiled programs, so that none is ever in memory whole. */
import type { NDArray } from '../../base/types.ts'
import {
  abs,
  add,
  cast,
  div,
  gather,
  input,
  matmul,
  max,
  maximum,
  mul,
  Program,
  reshape,
  round,
  SessionCache,
  type Tensor,
} from '../../tensor/index.ts'
import { type StoredTensor, storedTypes } from '../formats/index.ts'

/** Rows of values, made when they are read; a vector is one row, a stack of matrices all their rows. */
export interface Matrix {
  readonly rows: number
  readonly columns: number
  /** Values [count, columns] of the rows from `from` on. */
  read(from: number, count: number): Promise<Float32Array>
}

/** A vector that is made once, when it is first asked for. */
export type LazyVector = () => Promise<Float32Array>

/** Makes a value at the first call. */
export function once<T>(make: () => Promise<T>): () => Promise<T> {
  let made: Promise<T> | undefined
  return () => {
    made ??= make()
    return made
  }
}

/** Values read at a time: a program's start costs little beside them. */
const pieceValues = 2 ** 20

/** Numbers of rows to read at a time, in order. */
export function* piecesOf({ rows, columns }: Pick<Matrix, 'rows' | 'columns'>): Generator<readonly [from: number, count: number]> {
  const step = Math.max(1, Math.floor(pieceValues / Math.max(1, columns)))
  for (let from = 0; from < rows; from += step) yield [from, Math.min(step, rows - from)]
}

const sessions = new SessionCache(64e6)
const programs = new Map<string, Promise<Program>>()

/** Runs a traced function of a piece [n, columns]; its program is made once for each key. */
async function compute(key: string, outputs: () => Tensor, feeds: Readonly<Record<string, NDArray>>): Promise<Float32Array> {
  let program = programs.get(key)
  if (!program) {
    program = Program.of({ y: outputs() }, { device: 'cpu', cache: sessions })
    programs.set(key, program)
    program.catch(() => programs.delete(key))
  }
  return ((await (await program).run(feeds)) as { y: NDArray }).y.data as Float32Array
}

const array = (data: Float32Array, ...shape: number[]): NDArray => ({ dtype: 'float32', shape, data })

/** The matrix of a stored tensor, of any type. */
export function stored(t: StoredTensor): Matrix {
  const columns = t.shape.at(-1) ?? 1
  const { values, bytes, decode } = storedTypes[t.type]
  const rowBytes = (columns / values) * bytes
  return {
    rows: columns === 0 ? 0 : t.shape.slice(0, -1).reduce((p, n) => p * n, 1),
    columns,
    async read(from, count) {
      const out = new Float32Array(count * columns)
      decode(await t.source.read(t.offset + from * rowBytes, count * rowBytes), out)
      return out
    },
  }
}

/** A matrix that is in memory. */
export const held = (data: Float32Array, columns: number): Matrix => ({
  rows: data.length / columns,
  columns,
  read: async (from, count) => data.slice(from * columns, (from + count) * columns),
})

/** All values at once; meant for vectors. */
export const valuesOf = (m: Matrix): Promise<Float32Array> => m.read(0, m.rows)

/** Every row times its factor, or every column times its own. */
export function scaled(m: Matrix, axis: 'rows' | 'columns', factors: Float32Array): Matrix {
  return {
    ...m,
    async read(from, count) {
      const x = await m.read(from, count)
      const c = axis === 'rows' ? array(factors.slice(from, from + count), count, 1) : array(factors, m.columns)
      const trace = () => mul(input('x', 'float32', ['n', m.columns]), input('c', 'float32', axis === 'rows' ? ['n', 1] : [m.columns]))
      return compute(`scaled ${axis} ${m.columns}`, trace, { x: array(x, count, m.columns), c })
    },
  }
}

/** m + left·right, with left [rows, rank] and right [rank, columns]. */
export function plusProduct(m: Matrix, left: LazyVector, right: LazyVector, rank = 1): Matrix {
  return {
    ...m,
    async read(from, count) {
      const [x, l, r] = [await m.read(from, count), await left(), await right()]
      const trace = () =>
        add(input('x', 'float32', ['n', m.columns]), matmul(input('l', 'float32', ['n', rank]), input('r', 'float32', [rank, m.columns])))
      return compute(`plus ${rank} ${m.columns}`, trace, {
        x: array(x, count, m.columns),
        l: array(l.slice(from * rank, (from + count) * rank), count, rank),
        r: array(r, rank, m.columns),
      })
    },
  }
}

/** Some rows, in the given order. */
export function takenRows(m: Matrix, indices: readonly number[]): Matrix {
  return {
    rows: indices.length,
    columns: m.columns,
    async read(from, count) {
      const out = new Float32Array(count * m.columns)
      // Neighbours are read together.
      for (let i = 0; i < count; ) {
        const first = indices[from + i] as number
        let run = 1
        while (i + run < count && indices[from + i + run] === first + run) run++
        out.set(await m.read(first, run), i * m.columns)
        i += run
      }
      return out
    },
  }
}

/** Some columns, in the given order. */
export function takenColumns(m: Matrix, indices: readonly number[]): Matrix {
  const places: NDArray = { dtype: 'int64', shape: [indices.length], data: BigInt64Array.from(indices, BigInt) }
  return {
    rows: m.rows,
    columns: indices.length,
    async read(from, count) {
      const x = await m.read(from, count)
      const trace = () => gather(input('x', 'float32', ['n', m.columns]), input('i', 'int64', [indices.length]), 1)
      return compute(`columns ${m.columns} ${indices.length}`, trace, { x: array(x, count, m.columns), i: places })
    },
  }
}

/** Some rows changed by a function, the others as they are. */
export function within(m: Matrix, first: number, rows: number, change: (part: Matrix) => Matrix): Matrix {
  const part = change({ rows, columns: m.columns, read: (from, count) => m.read(first + from, count) })
  return {
    ...m,
    async read(from, count) {
      const [begin, end] = [Math.max(from, first), Math.min(from + count, first + rows)]
      if (begin >= end) return m.read(from, count)
      const out = new Float32Array(count * m.columns)
      if (from < begin) out.set(await m.read(from, begin - from))
      out.set(await part.read(begin - first, end - begin), (begin - from) * m.columns)
      if (end < from + count) out.set(await m.read(end, from + count - end), (end - from) * m.columns)
      return out
    },
  }
}

/** Values rounded to a symmetric grid of 2^bits − 1 steps in every block of a row. */
export function gridded(m: Matrix, bits: number, block: number): Matrix {
  const blocks = m.columns / block
  const top = 2 ** (bits - 1) - 1
  return {
    ...m,
    async read(from, count) {
      const trace = () => {
        const x = reshape(input('x', 'float32', ['n', m.columns]), ['n', blocks, block])
        const step = maximum(div(max(abs(x), [2], true), top), 1e-30)
        return reshape(mul(round(div(x, step)), step), ['n', m.columns])
      }
      return compute(`grid ${bits} ${block} ${m.columns}`, trace, { x: array(await m.read(from, count), count, m.columns) })
    },
  }
}

/** Values rounded to a narrower type. */
export function narrowed(m: Matrix, dtype: 'float16' | 'bfloat16'): Matrix {
  return {
    ...m,
    async read(from, count) {
      const trace = () => cast(cast(input('x', 'float32', ['n', m.columns]), dtype), 'float32')
      return compute(`narrowed ${dtype} ${m.columns}`, trace, { x: array(await m.read(from, count), count, m.columns) })
    },
  }
}

/** weights·m: [columns], summed over the rows in float64 between the pieces. */
export function leftProduct(m: Matrix, weights: Float32Array): LazyVector {
  return once(async () => {
    const sum = new Float64Array(m.columns)
    const trace = () => matmul(input('w', 'float32', [1, 'n']), input('x', 'float32', ['n', m.columns]))
    for (const [from, count] of piecesOf(m)) {
      const part = await compute(`left ${m.columns}`, trace, {
        w: array(weights.slice(from, from + count), 1, count),
        x: array(await m.read(from, count), count, m.columns),
      })
      for (const [i, v] of part.entries()) sum[i] = (sum[i] as number) + v
    }
    return Float32Array.from(sum)
  })
}

/** m·weights: [rows]. */
export function rightProduct(m: Matrix, weights: Float32Array): LazyVector {
  return once(async () => {
    const out = new Float32Array(m.rows)
    const trace = () => matmul(input('x', 'float32', ['n', m.columns]), input('w', 'float32', [m.columns, 1]))
    for (const [from, count] of piecesOf(m)) {
      const feeds = { x: array(await m.read(from, count), count, m.columns), w: array(weights, m.columns, 1) }
      out.set(await compute(`right ${m.columns}`, trace, feeds), from)
    }
    return out
  })
}
