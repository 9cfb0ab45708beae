/** @file Values in the shape of others: what gradient rules are made of. Imports no op family, so that every family can use it. */
import type { DType } from '../../base/types.ts'
import { constantValue } from '../graph.ts'
import { broadcast, factorsOf, sameShape, termsOf } from '../shape.ts'
import { apply1, type Dim, type Node, type Shape, scalar, type Tensor } from '../tensor.ts'

/** Whether values of this type can carry gradients. */
export function isFloat(dtype: DType): boolean {
  return dtype === 'float32' || dtype === 'float64' || dtype === 'float16' || dtype === 'bfloat16'
}

/** The names that make up an axis: `batch*pos` is made of `batch` and `pos`. */
function namesIn(d: Dim): string[] {
  if (typeof d === 'number') return []
  const terms = termsOf(d)
  if (terms.length > 1) return terms.flatMap(namesIn)
  const factors = factorsOf(terms[0] as Dim)
  if (factors.length > 1) return factors.flatMap(namesIn)
  return typeof factors[0] === 'string' ? [factors[0]] : []
}

const inputsAbove = new WeakMap<Node, readonly Tensor[]>()

/** Program inputs with named axes that a tensor depends on; remembered, since rules ask for the same ones over and over. */
function namedInputs(x: Tensor): readonly Tensor[] {
  const stack: Node[] = [x.node]
  while (stack.length > 0) {
    const node = stack[stack.length - 1] as Node
    const open = node.inputs.filter((i) => i && !inputsAbove.has(i.node))
    if (!inputsAbove.has(node) && open.length > 0) {
      for (const i of open) stack.push((i as Tensor).node)
      continue
    }
    stack.pop()
    if (inputsAbove.has(node)) continue
    if (node.op.name === 'input') {
      inputsAbove.set(
        node,
        node.outputs.filter((t) => t.shape.some((d) => typeof d === 'string')),
      )
      continue
    }
    const lists = node.inputs.flatMap((i) => (i ? [inputsAbove.get(i.node) as readonly Tensor[]] : []))
    const longest = lists.reduce((a, b) => (b.length > a.length ? b : a), [])
    const all = new Set(lists.flat())
    // Most nodes see exactly what one of their inputs sees: they share that list.
    inputsAbove.set(node, all.size === longest.length ? longest : [...all])
  }
  return inputsAbove.get(x.node) as readonly Tensor[]
}

/**
 * The tensors from which the named axes of `shape` are read at run time: program inputs where they have them, else one
 * of `xs`. Reading from inputs keeps large tensors from staying alive, or from crossing segments, for their shape alone.
 */
export function carriers(shape: Shape, ...xs: readonly [Tensor, ...Tensor[]]): Tensor[] {
  const found = new Set<Tensor>()
  for (const name of shape.flatMap(namesIn)) {
    const inputs = xs.flatMap(namedInputs)
    found.add([...inputs, ...xs].find((t) => t.shape.includes(name)) ?? xs[0])
  }
  return [...found]
}

/** `g` repeated to the shape of `x`. */
export function expandTo(g: Tensor, x: Tensor): Tensor {
  return sameShape(g.shape, x.shape) ? g : apply1('expand', [g, ...carriers(x.shape, x)], { shape: x.shape })
}

/** One value in the shape of `x`. */
export function filledLike(x: Tensor, value: number): Tensor {
  return expandTo(scalar(value, x.dtype), x)
}

/** Zeros in the shape of `x`. */
export function zerosLike(x: Tensor): Tensor {
  return filledLike(x, 0)
}

/** `g` with other axes, of which the named ones are read from `xs`. */
export function reshapeTo(g: Tensor, shape: Shape, ...xs: readonly [Tensor, ...Tensor[]]): Tensor {
  if (sameShape(g.shape, shape)) return g
  const named = shape.filter((d, i) => typeof d === 'string' && g.shape[i] !== d)
  return apply1('reshape', [g, ...(named.length > 1 ? carriers(named, ...xs) : [])], { shape })
}

/** Number of values along the given axes: a number, or a scalar tensor of the type of `x` where an axis is a symbol. */
export function countOf(x: Tensor, axes: readonly number[]): number | Tensor {
  const dims = axes.map((a) => x.shape[a] as Dim)
  if (dims.every((d) => typeof d === 'number')) return dims.reduce((a: number, b) => a * (b as number), 1)
  return apply1('cast', [apply1('extent', carriers(dims, x), { shape: dims })], { to: x.dtype })
}

/** Undoes broadcasting: sums `g` over the axes along which `like` was repeated. */
export function unbroadcast(g: Tensor, like: Tensor): Tensor {
  const lead = g.rank - like.rank
  const leading = Array.from({ length: lead }, (_, i) => i)
  const repeated = like.shape.flatMap((d, i) => (d === 1 && g.shape[i + lead] !== 1 ? [i + lead] : []))
  if (lead === 0 && repeated.length === 0) return g
  if (repeated.length === 0) return g.sum(leading)
  const summed = g.sum([...leading, ...repeated], true)
  return lead === 0 ? summed : reshapeTo(summed, like.shape, like)
}

/** `g · x` for a gradient `g`: where `g` only repeats a smaller tensor, that one is multiplied and nothing is repeated in memory. */
export function times(g: Tensor, x: Tensor): Tensor {
  const thin = thinned(g, x)
  return isOne(thin) && sameShape(x.shape, g.shape) ? x : thin.mul(x)
}

/** The tensor that `g` repeats, when combining it with `x` gives the same shape as combining `g`. */
export function thinned(g: Tensor, x: Tensor): Tensor {
  if (g.node.op.name !== 'expand') return g
  const inner = g.node.inputs[0] as Tensor
  return sameShape(broadcast(inner.shape, x.shape, 'mul'), broadcast(g.shape, x.shape, 'mul')) ? inner : g
}

function isOne(x: Tensor): boolean {
  const value = constantValue(x)
  return value !== undefined && value.data.length === 1 && Number(value.data[0]) === 1
}

/** Whether a gradient is nothing but values added into zeros: its base can be replaced, and its sum is that of the values. */
export function isScatteredIntoZeros(t: Tensor): boolean {
  const { op, attrs, inputs } = t.node
  if ((op.name !== 'scatter_nd' && op.name !== 'scatter_elements') || attrs.add !== true) return false
  const into = inputs[0] as Tensor
  const filled = into.node.op.name === 'expand' ? constantValue(into.node.inputs[0] as Tensor) : undefined
  return filled?.data.length === 1 && Number(filled.data[0]) === 0
}

/** Inserts axes of length 1 at the given places of the result, which ascend. */
export function unsqueezeAll(x: Tensor, axes: readonly number[]): Tensor {
  return axes.reduce((t, axis) => apply1('unsqueeze', [t], { axis }), x)
}
