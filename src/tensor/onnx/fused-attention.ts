/** @file Fused attention nodes of a file in simpler ops, so that scores and patterns inside them are tensors. */
import { ModelError } from '../../base/errors.ts'
import * as op from '../ops/index.ts'
import { zerosLike } from '../ops/like.ts'
import { type Dim, scalar, type Tensor } from '../tensor.ts'
import type { NodeProto } from './gen/onnx_pb.ts'
import type { OnnxTensor } from './types.ts'

/** What is inside a fused node: scores [batch, head, pos, key] with their mask, their softmax, and z [batch, pos, head, d_head]. */
export const fusedSites = ['attn_scores', 'attn_probs', 'z'] as const

/** A node in simpler ops. */
export interface WrittenOut {
  readonly outputs: readonly (Tensor | undefined)[]
  readonly inner: Readonly<Record<(typeof fusedSites)[number], Tensor>>
}

interface Context {
  readonly node: NodeProto
  /** An input that is given, as a traced tensor with these axes; names stand for those that only a run tells. */
  readonly input: (i: number, dims: (known: readonly (number | string | null)[]) => readonly Dim[]) => Tensor
  readonly has: (i: number) => boolean
  readonly known: (i: number) => readonly (number | string | null)[] | undefined
}

const int = (c: Context, name: string, otherwise: number) => Number(c.node.attribute.find((a) => a.name === name)?.i ?? otherwise)
const float = (c: Context, name: string, otherwise: number) => c.node.attribute.find((a) => a.name === name)?.f ?? otherwise

/** How many of each fused operator's inputs are understood; what comes after them changes the values. */
const rules: Readonly<Record<string, { readonly inputs: number; readonly write: (c: Context) => WrittenOut }>> = {
  GroupQueryAttention: { inputs: 11, write: grouped },
  MultiHeadAttention: { inputs: 8, write: multiHead },
  Attention: { inputs: 6, write: packed },
}

/** Why a fused attention node cannot be written in simpler ops; undefined where it can, or where it is no such node. */
export function cannotWrite(node: NodeProto, tensors: ReadonlyMap<string, OnnxTensor>): string | undefined {
  const rule = rules[node.opType]
  if (!rule) return `${node.opType} is not written in simpler ops here`
  const flags = ['smooth_softmax', 'do_rotary_past', 'k_quant_type', 'qk_output'].filter((name) => {
    const a = node.attribute.find((x) => x.name === name)
    return a && (a.i !== 0n || a.s.length > 0)
  })
  if (flags.length > 0) return `it sets ${flags.join(', ')}`
  if (node.opType === 'Attention' && node.attribute.some((a) => a.name === 'qkv_hidden_sizes' || (a.name === 'do_rotary' && a.i !== 0n)))
    return 'it has sizes or a rotation of its own'
  const extra = node.input.findIndex((name, i) => name !== '' && i >= rule.inputs)
  if (extra >= 0) return `its input ${extra} is not understood here`
  const dtype = tensors.get(node.output[0] as string)?.dtype
  if (dtype !== 'float32') return `its values are ${dtype ?? 'of an unknown type'}`
  const width = tensors.get(node.input[0] as string)?.shape
  if (width?.length !== 3 || typeof width[2] !== 'number') return 'the width of its input is not known before it runs'
  return undefined
}

/** Whether a node is fused attention that can be written in simpler ops. */
export const isFused = (node: NodeProto, tensors: ReadonlyMap<string, OnnxTensor>) =>
  node.domain === 'com.microsoft' && Object.hasOwn(rules, node.opType) && cannotWrite(node, tensors) === undefined

/** The heads of a fused node. */
export const headsOf = (node: NodeProto) => Number(node.attribute.find((a) => a.name === 'num_heads')?.i ?? 0)

/**
 * A fused attention node in ops of our table.
 * @throws ModelError where its inputs have another layout than those that are understood.
 */
export function writtenOut(
  node: NodeProto,
  tensors: ReadonlyMap<string, OnnxTensor>,
  made: (i: number, dims: readonly Dim[]) => Tensor,
): WrittenOut {
  const has = (i: number) => (node.input[i] ?? '') !== ''
  const known = (i: number) => (has(i) ? tensors.get(node.input[i] as string)?.shape : undefined)
  const cache = new Map<number, Tensor>()
  const c: Context = {
    node,
    has,
    known,
    input: (i, dims) => {
      const t = cache.get(i) ?? made(i, dims(known(i) ?? []))
      cache.set(i, t)
      return t
    },
  }
  return (rules[node.opType] as { write: (c: Context) => WrittenOut }).write(c)
}

const refused = (c: Context, why: string) =>
  new ModelError(`The node '${c.node.name || c.node.output[0]}' (${c.node.opType}) cannot be written in simpler ops: ${why}.`)

const long = (value: number) => scalar(value, 'int64')
const lengthOf = (x: Tensor, axis: number) => op.add(op.max(op.iota(x, axis)), long(1))
const headsFirst = (x: Tensor, heads: number) => {
  const [batch, pos, width] = x.shape as [Dim, Dim, number]
  return op.transpose(op.reshape(x, [batch, pos, heads, width / heads]), [0, 2, 1, 3])
}

/** The width of an input whose last axis must be known. */
function widthOf(c: Context, i: number): number {
  const width = c.known(i)?.at(-1)
  if (typeof width !== 'number') throw refused(c, `the width of its input ${i} is not known before it runs`)
  return width
}

/** A bias on scores; axes of length 1 stay so. */
const biasOf = (c: Context, i: number, heads: number, keys: Dim) =>
  c.has(i) ? c.input(i, (known) => ['batch', heads, 'pos', keys].map((d, at) => (known[at] === 1 && at !== 3 ? 1 : d)) as Dim[]) : undefined

interface Heads {
  /** [batch, head, pos, d_head] */
  readonly q: Tensor
  /** [batch, kv_head, key, d_head] */
  readonly k: Tensor
  readonly v: Tensor
  readonly scale: number
  readonly softcap?: number
  readonly bias?: Tensor | undefined
  /** Added to the scores after the bias; what it hides has −∞ or a low score. */
  readonly masks: readonly (Tensor | undefined)[]
}

function attend({ q, k, v, scale, softcap, bias, masks }: Heads): WrittenOut['inner'] & { flat: Tensor } {
  const [batch, heads, pos] = q.shape as [Dim, number, Dim]
  const [, kvHeads, keys] = k.shape as [Dim, number, Dim]
  const folded = (x: Tensor, width: Dim) => (heads === kvHeads ? x : op.reshape(x, [batch, kvHeads, -1, width]))
  let scores = op.matmul(folded(q, q.shape[3] as Dim), k, { transB: true, alpha: scale })
  if (heads !== kvHeads) scores = op.reshape(scores, [batch, heads, pos, keys])
  if (softcap) scores = op.mul(op.tanh(op.mul(scores, 1 / softcap)), softcap)
  for (const t of [bias, ...masks]) if (t) scores = op.add(scores, t)
  const probs = op.softmax(scores)
  const mixed = op.matmul(folded(probs, keys), v)
  const z = op.transpose(heads === kvHeads ? mixed : op.reshape(mixed, [batch, heads, pos, v.shape[3] as Dim]), [0, 2, 1, 3])
  return { attn_scores: scores, attn_probs: probs, z, flat: op.reshape(z, [batch, pos, heads * (v.shape[3] as number)]) }
}

/** 0 where a place is seen, a low score where it is not. */
const hidden = (seen: Tensor, score: number) => op.where(seen, scalar(0), score)

function grouped(c: Context): WrittenOut {
  const heads = int(c, 'num_heads', 0)
  const kvHeads = int(c, 'kv_num_heads', 0)
  const width = widthOf(c, 0)
  const one = c.input(0, () => ['batch', 'pos', width])
  const isPacked = !c.has(1)
  const d = isPacked ? width / (heads + 2 * kvHeads) : width / heads
  const part = (from: number, to: number) => op.slice(one, 2, from * d, to * d)
  const [q, k, v] = isPacked
    ? [part(0, heads), part(heads, heads + kvHeads), part(heads + kvHeads, heads + 2 * kvHeads)]
    : [one, ...[1, 2].map((i) => c.input(i, () => ['batch', 'pos', kvHeads * d]))]
  const flat = (i: number, dims: readonly Dim[]) => {
    const rank = c.known(i)?.length ?? dims.length
    return op.reshape(
      c.input(i, () => (rank > dims.length ? [...dims, 1] : dims)),
      dims,
    )
  }
  const lastSlot = op.cast(flat(5, ['batch']), 'int64')
  const total = op.cast(flat(6, []), 'int64')
  const fresh = lengthOf(one, 1)
  // A prompt begins at the first slot, whatever the lengths of its rows.
  const start = op.where(op.equal(total, fresh), op.mul(lastSlot, long(0)), op.sub(op.add(lastSlot, long(1)), fresh))
  const slots = op.add(op.unsqueeze(start, 1), op.unsqueeze(op.iota(one, 1), 0))
  const positions = c.has(9) ? c.input(9, () => ['batch', 'pos']) : slots
  const turned = (x: Tensor, n: number) => {
    if (int(c, 'do_rotary', 0) === 0) return x
    const [cos, sin] = [7, 8].map((i) => c.input(i, (known) => [typeof known[0] === 'number' ? known[0] : 'positions', known[1] as number]))
    return op.rotary(
      x,
      positions,
      { cos: cos as Tensor, sin: sin as Tensor },
      { heads: n, interleaved: int(c, 'rotary_interleaved', 0) === 1 },
    )
  }
  const queries = headsFirst(turned(q as Tensor, heads), heads)
  const [keysNow, valuesNow] = [headsFirst(turned(k as Tensor, kvHeads), kvHeads), headsFirst(v as Tensor, kvHeads)]
  const cached = (i: number, now: Tensor) => {
    if (!c.has(i)) return { seen: now, present: now }
    const past = c.input(i, () => ['batch', kvHeads, 'past', d])
    const index = op.expand(op.unsqueeze(op.unsqueeze(slots, 1), 3), now.shape, now)
    const all = op.scatterElements(op.concat([past, zerosLike(now)], 2), index, now, 2)
    return {
      seen: op.sliceTo(all, 2, total, 'total'),
      present: op.sliceTo(all, 2, op.maximum(total, op.sub(lengthOf(all, 2), fresh)), 'present'),
    }
  }
  const [keys, values] = [cached(3, keysNow), cached(4, valuesNow)]
  const slotOfQuery = op.unsqueeze(slots, 2)
  const slotOfKey = op.iota(keys.seen, 2)
  const window = int(c, 'local_window_size', -1)
  let seen = op.lessEqual(slotOfKey, slotOfQuery)
  if (window > 0) seen = op.and(seen, op.greater(slotOfKey, op.sub(slotOfQuery, long(window))))
  const { flat: z, ...inner } = attend({
    q: queries,
    k: keys.seen,
    v: values.seen,
    scale: float(c, 'scale', 0) || 1 / Math.sqrt(d),
    softcap: float(c, 'softcap', 0),
    bias: biasOf(c, 10, heads, keys.seen.shape[2] as Dim),
    masks: [op.unsqueeze(hidden(seen, Number.NEGATIVE_INFINITY), 1)],
  })
  return { outputs: [z, keys.present, values.present], inner }
}

/** Earlier keys or values before those of this step. */
function grown(past: Tensor | undefined, now: Tensor): Tensor {
  if (!past) return now
  const all = op.concat([past, now], 2)
  return op.sliceTo(all, 2, lengthOf(all, 2), 'total')
}

/** A mask of keys: lengths [batch], or 1 and 0 [batch, key] or [batch, pos, key]. */
function keyMask(c: Context, i: number, keys: Tensor, score: number): Tensor | undefined {
  if (!c.has(i)) return undefined
  const key = keys.shape[2] as Dim
  const rank = c.known(i)?.length
  if (rank === 1) {
    const lengths = op.cast(
      c.input(i, () => ['batch']),
      'int64',
    )
    return hidden(op.unsqueeze(op.unsqueeze(op.less(op.unsqueeze(op.iota(keys, 2), 0), op.unsqueeze(lengths, 1)), 1), 1), score)
  }
  if (rank !== 2 && rank !== 3) throw refused(c, `its mask has ${rank ?? 'an unknown number of'} axes`)
  const mask = c.input(i, () => (rank === 2 ? ['batch', key] : ['batch', 'pos', key]))
  const shown = op.greater(op.cast(mask, 'int64'), long(0))
  return hidden(rank === 2 ? op.unsqueeze(op.unsqueeze(shown, 1), 1) : op.unsqueeze(shown, 1), score)
}

/** Keys that come after a query, where a node looks back only. */
function causalMask(c: Context, q: Tensor, k: Tensor): Tensor | undefined {
  if (int(c, 'unidirectional', 0) === 0) return undefined
  const before = op.sub(lengthOf(k, 2), lengthOf(q, 2))
  const places = op.unsqueeze(op.add(op.iota(q, 2), before), 1)
  return hidden(op.lessEqual(op.unsqueeze(op.iota(k, 2), 0), places), Number.NEGATIVE_INFINITY)
}

function multiHead(c: Context): WrittenOut {
  const heads = int(c, 'num_heads', 0)
  const width = widthOf(c, 0)
  const score = float(c, 'mask_filter_value', -10_000)
  if (!c.has(1) || !c.has(2)) throw refused(c, 'its queries, keys and values are packed into one input')
  const wide = (i: number) => (c.known(i)?.length === 4 ? undefined : widthOf(c, i))
  const bias = c.has(3) ? c.input(3, (known) => [known[0] as number]) : undefined
  const sideways = (i: number, from: number): Tensor => {
    const w = wide(i)
    if (w === undefined) return c.input(i, (known) => ['batch', heads, 'key', known[3] as number])
    const x = c.input(i, () => ['batch', i === 0 ? 'pos' : 'key', w])
    return headsFirst(bias ? op.add(x, op.slice(bias, 0, from, from + w)) : x, heads)
  }
  const [q, kNow, vNow] = [sideways(0, 0), sideways(1, width), sideways(2, 2 * width)]
  const cached = (i: number, now: Tensor) => (c.has(i) ? c.input(i, () => ['batch', heads, 'past', now.shape[3] as Dim]) : undefined)
  const [k, v] = [grown(cached(6, kNow), kNow), grown(cached(7, vNow), vNow)]
  const { flat, ...inner } = attend({
    q,
    k,
    v,
    scale: float(c, 'scale', 0) || 1 / Math.sqrt(width / heads),
    bias: biasOf(c, 5, heads, k.shape[2] as Dim),
    masks: [keyMask(c, 4, k, score), causalMask(c, q, k)],
  })
  return { outputs: [flat, k, v], inner }
}

function packed(c: Context): WrittenOut {
  const heads = int(c, 'num_heads', 0)
  const width = widthOf(c, 0)
  const all = widthOf(c, 1)
  const x = c.input(0, () => ['batch', 'pos', width])
  const product = op.matmul(
    x,
    c.input(1, () => [width, all]),
  )
  const qkv = c.has(2)
    ? op.add(
        product,
        c.input(2, () => [all]),
      )
    : product
  const [q, kNow, vNow] = op.split(qkv, 2, [all / 3, all / 3, all / 3]).map((t) => headsFirst(t, heads)) as [Tensor, Tensor, Tensor]
  const past = c.has(4) ? c.input(4, () => [2, 'batch', heads, 'past', all / 3 / heads]) : undefined
  const half = (i: number) => past && op.squeeze(op.slice(past, 0, i, i + 1), 0)
  const [k, v] = [grown(half(0), kNow), grown(half(1), vNow)]
  const { flat, ...inner } = attend({
    q,
    k,
    v,
    scale: float(c, 'scale', 0) || 1 / Math.sqrt(all / 3 / heads),
    bias: biasOf(c, 5, heads, k.shape[2] as Dim),
    masks: [keyMask(c, 3, k, float(c, 'mask_filter_value', -10_000)), causalMask(c, q, k)],
  })
  return { outputs: [flat, op.concat([op.unsqueeze(k, 0), op.unsqueeze(v, 0)], 0)], inner }
}
