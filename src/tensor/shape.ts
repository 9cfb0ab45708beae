/** @file Shape rules that many ops share. */
import { ShapeError } from '../base/errors.ts'
import { type Dim, type Shape, shown, type Tensor, type TensorType } from './tensor.ts'

/** The shape that two shapes broadcast to, as NumPy does; symbols match only themselves and 1. */
export function broadcast(a: Shape, b: Shape, op: string): Dim[] {
  const rank = Math.max(a.length, b.length)
  const out: Dim[] = []
  for (let i = 0; i < rank; i++) {
    const x = a[a.length - rank + i] ?? 1
    const y = b[b.length - rank + i] ?? 1
    if (x === y || y === 1) out.push(x)
    else if (x === 1) out.push(y)
    else
      throw new ShapeError(
        `'${op}' cannot combine shapes ${shown(a)} and ${shown(b)}: axis ${i} is ${x} on one side and ${y} on the other.`,
      )
  }
  return out
}

/** Splits the name of an axis at a separator that is not inside brackets: `a*(b+c)` at `*` is `a` and `(b+c)`. */
function splitName(name: string, separator: '*' | '+'): string[] {
  const parts: string[] = []
  let depth = 0
  let from = 0
  for (let i = 0; i < name.length; i++) {
    const c = name[i] as string
    if (c === '(' || c === '[') depth++
    else if (c === ')' || c === ']') depth--
    else if (c === separator && depth === 0) {
      parts.push(name.slice(from, i))
      from = i + 1
    }
  }
  return [...parts, name.slice(from)]
}

/** Whether a name is one sum in brackets. */
const isBracketed = (name: string) => name.startsWith('(') && splitName(name, '*').length === 1 && splitName(name, '+').length === 1

/** The factors of an axis: numbers as numbers, a sum in brackets. */
export function factorsOf(d: Dim): Dim[] {
  if (typeof d === 'number' || isBracketed(d)) return [d]
  if (splitName(d, '+').length > 1) return [`(${d})`]
  return splitName(d, '*').map(asNumber)
}

/** The terms of an axis that is a sum of axes: `past+pos` is `past` and `pos`. */
export function termsOf(d: Dim): Dim[] {
  if (typeof d === 'number') return [d]
  return splitName(isBracketed(d) ? d.slice(1, -1) : d, '+').map(asNumber)
}

const asNumber = (part: string): Dim => (/^\d+$/.test(part) ? Number(part) : part)

/** The product of axes as one axis; symbols multiply by name (`batch*pos`). */
export function product(dims: Shape): Dim {
  let size = 1
  const names: string[] = []
  for (const factor of dims.flatMap(factorsOf)) {
    if (typeof factor === 'number') size *= factor
    else names.push(factor)
  }
  if (names.length === 0 || size === 0) return size
  names.sort()
  if (names.length === 1 && size === 1) return termsOf(names[0] as string).join('+')
  return size === 1 ? names.join('*') : [...names, String(size)].join('*')
}

/** The sum of axes as one axis: symbols first, in their order. */
export function total(dims: Shape): Dim {
  let size = 0
  const names: string[] = []
  for (const term of dims.flatMap(termsOf)) {
    if (typeof term === 'number') size += term
    else names.push(term)
  }
  if (names.length === 0) return size
  return [...names, ...(size ? [size] : [])].join('+')
}

/** The length of an axis, given those of the symbols; undefined where it is made of others. */
export function evaluateDim(d: Dim, sizes: ReadonlyMap<string, number>): number | undefined {
  if (typeof d === 'number') return d
  const known = sizes.get(d)
  if (known !== undefined) return known
  const combine = (parts: readonly Dim[], by: (a: number, b: number) => number) => {
    const values = parts.map((p) => evaluateDim(p, sizes))
    return values.some((v) => v === undefined) ? undefined : (values as number[]).reduce(by)
  }
  const terms = termsOf(d)
  if (terms.length > 1) return combine(terms, (a, b) => a + b)
  const factors = factorsOf(d)
  return factors.length > 1 ? combine(factors, (a, b) => a * b) : undefined
}

/** Whether two shapes are the same, symbols by name. */
export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((d, i) => d === b[i])
}

/** The type of an input that must be there, with a sentence when it is not. */
export function need(op: string, inputs: readonly (Tensor | undefined)[], i: number): Tensor {
  const x = inputs[i]
  if (!x) throw new ShapeError(`'${op}' needs its input ${i}.`)
  return x
}

/** Refuses inputs of different element types. */
export function sameType(op: string, ...xs: readonly Tensor[]): void {
  const first = xs[0] as Tensor
  for (const x of xs)
    if (x.dtype !== first.dtype)
      throw new ShapeError(`'${op}' needs inputs of one type, not ${first.dtype} and ${x.dtype}; cast one of them.`)
}

/** A single output of the given type. */
export function one(dtype: TensorType['dtype'], shape: Shape): readonly TensorType[] {
  return [{ dtype, shape }]
}

/** Resolves `-1` in a reshape target against the source shape. */
export function resolveReshape(from: Shape, to: Shape): Dim[] {
  const unknown = to.filter((d) => d === -1).length
  if (unknown > 1) throw new ShapeError(`A reshape to ${shown(to)} leaves more than one axis open.`)
  const factors = (dims: Shape) => {
    let n = 1
    const names = new Map<string, number>()
    for (const d of dims) {
      if (d === -1) continue
      for (const part of factorsOf(d)) {
        if (typeof part === 'number') n *= part
        else names.set(part, (names.get(part) ?? 0) + 1)
      }
    }
    return { n, names }
  }
  const a = factors(from)
  const b = factors(to)
  const rest: Dim[] = []
  for (const [name, count] of a.names) {
    const used = b.names.get(name) ?? 0
    if (used > count) throw mismatch(from, to)
    for (let i = used; i < count; i++) rest.push(name)
  }
  for (const name of b.names.keys()) if (!a.names.has(name)) throw mismatch(from, to)
  if (unknown === 0) {
    if (a.n !== b.n || rest.length > 0) throw mismatch(from, to)
    return [...to]
  }
  if (b.n === 0 || a.n % b.n !== 0) throw mismatch(from, to)
  return to.map((d) => (d === -1 ? product([a.n / b.n, ...rest]) : d))
}

function mismatch(from: Shape, to: Shape): ShapeError {
  return new ShapeError(`A tensor of shape ${shown(from)} cannot be reshaped to ${shown(to)}.`)
}
