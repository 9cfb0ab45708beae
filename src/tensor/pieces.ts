/** @file Products with a weight too large to be held at once, written as products with pieces of it, each in a segment of its own. */

import { topological } from './graph.ts'
import { concat, cut, slice } from './ops/index.ts'
import { type WeightRef, weight, weightBytes } from './ops/leaf.ts'
import { matmul } from './ops/linear.ts'
import { apply, type Node, type Tensor } from './tensor.ts'

/** Rows `from` to below `to` of a weight, where they lie. */
function rowsOf(ref: WeightRef, from: number, to: number): Tensor {
  const [rows = 1, ...rest] = ref.shape
  const stride = weightBytes(ref) / rows
  const [offset, bytes] = [from * stride, (to - from) * stride]
  const { place } = ref
  const part =
    'path' in place
      ? { path: place.path, offset: place.offset + offset, bytes }
      : { data: place.data.subarray(offset, offset + bytes), key: `${place.key}[${from}:${to}]` }
  return weight({ ...ref, shape: [to - from, ...rest], place: part })
}

/** The same product from pieces of the weight: columns of the result side by side, or parts of the inner sum added up. */
function inPieces(node: Node, x: Tensor, ref: WeightRef, count: number, segment: number): Tensor {
  const a = node.attrs as { transA: boolean; transB: boolean; alpha: number }
  const rows = ref.shape[0] as number
  const inner = a.transA ? x.rank - 2 : x.rank - 1
  // Up to the next mark of the graph there is room for any number of segments.
  const step = (Math.floor(segment) + 1 - segment) / (count + 1)
  const parts = Array.from({ length: count }, (_, i) => {
    const [from, to] = [Math.floor((i * rows) / count), Math.floor(((i + 1) * rows) / count)]
    const read = i === 0 ? x : cut(x, segment + i * step)
    return matmul(a.transB ? read : slice(read, inner, from, to), rowsOf(ref, from, to), a)
  })
  return a.transB ? concat(parts, -1) : parts.reduce((sum, part) => sum.add(part))
}

/** The same outputs, no product of which reads more than `most` bytes of a weight within one segment. Needs `cut` marks. */
export function splitWeights(outputs: readonly Tensor[], most: number): Tensor[] {
  const done = new Map<Tensor, Tensor>()
  const segments = new Map<Node, number>()
  const segmentOf = (node: Node): number => {
    for (const n of topological([node.outputs[0] as Tensor])) {
      if (segments.has(n)) continue
      let own = n.op.name === 'cut' ? (n.attrs.index as number) : -1
      for (const x of n.inputs) if (x) own = Math.max(own, segments.get(x.node) as number)
      segments.set(n, own)
    }
    return segments.get(node) as number
  }
  for (const node of topological(outputs)) {
    const inputs = node.inputs.map((x) => x && (done.get(x) as Tensor))
    const [x, w] = inputs
    const ref = node.op.name === 'matmul' && w?.node.op.name === 'weight' && w.rank === 2 ? (w.node.attrs.ref as WeightRef) : undefined
    const count = ref ? Math.min(Math.ceil(weightBytes(ref) / most), ref.shape[0] as number) : 1
    const segment = ref && count > 1 ? segmentOf((x as Tensor).node) : -1
    if (ref && segment >= 0) {
      done.set(node.outputs[0] as Tensor, inPieces(node, x as Tensor, ref, count, segment))
      continue
    }
    const same = inputs.every((t, i) => t === node.inputs[i])
    const made = same ? node.outputs : apply(node.op.name, inputs, node.attrs)
    for (const [i, t] of node.outputs.entries()) done.set(t, made[i] as Tensor)
  }
  return outputs.map((t) => done.get(t) as Tensor)
}
