/** @file Adding up the gradients that reach one tensor from its several uses, without padding or clearing more than is needed. */
import { concat } from './ops/index.ts'
import { isScatteredIntoZeros } from './ops/like.ts'
import type { Tensor } from './tensor.ts'
import { apply1 } from './tensor.ts'

/** The sum of gradients of one shape. */
export function combine(parts: readonly Tensor[]): Tensor {
  if (parts.length === 1) return parts[0] as Tensor
  return joinedSlices(parts) ?? scattered(parts)
}

interface Placed {
  readonly axis: number
  readonly start: number
  readonly end: number
  readonly part: Tensor
}

/** Where the gradients are slices that make up the whole axis, as after a split, they are put side by side. */
function joinedSlices(parts: readonly Tensor[]): Tensor | undefined {
  const placed = parts.map(placeOf)
  if (!placed.every((p) => p !== undefined)) return undefined
  const first = placed[0] as Placed
  const ordered = placed.toSorted((a, b) => a.start - b.start)
  let reached = 0
  for (const p of ordered) {
    if (p.axis !== first.axis || p.start !== reached) return undefined
    reached = p.end
  }
  if (reached !== (parts[0] as Tensor).shape[first.axis]) return undefined
  return concat(
    ordered.map((p) => p.part),
    first.axis,
  )
}

function placeOf(t: Tensor): Placed | undefined {
  const { op, attrs, inputs } = t.node
  if (op.name !== 'unslice' || attrs.step !== 1) return undefined
  const axis = attrs.axis as number
  const part = inputs[0] as Tensor
  const [size, length] = [t.shape[axis], part.shape[axis]]
  if (typeof size !== 'number' || typeof length !== 'number') return undefined
  const start = attrs.start as number
  const from = Math.max(start < 0 ? start + size : start, 0)
  return { axis, start: from, end: from + length, part }
}

/** Gradients that are scattered into zeros are scattered into the sum of the others instead. */
function scattered(parts: readonly Tensor[]): Tensor {
  const late = parts.filter(isScatteredIntoZeros)
  const early = parts.filter((t) => !isScatteredIntoZeros(t))
  const [base, ...rest] = early.length > 0 ? [sum(early), ...late] : late
  return rest.reduce((into, { node }) => apply1(node.op.name, [into, ...node.inputs.slice(1)], node.attrs), base as Tensor)
}

function sum(parts: readonly Tensor[]): Tensor {
  return parts.reduce((a, b) => a.add(b))
}
