/** @file Causal attention with rotary positions and a key-value cache: one fused node that expands when somebody looks inside. */
import { ShapeError } from '../../base/errors.ts'
import { need } from '../shape.ts'
import {
  type Attrs,
  apply,
  apply1,
  type Dim,
  defineOp,
  type Emitter,
  type Expansion,
  scalar,
  type Tensor,
  type TensorType,
} from '../tensor.ts'
import { add, and, less, lessEqual, mul, not, sub, tanh, where } from './elementwise.ts'
import { scatterElements } from './indexing.ts'
import { concat, expand, iota, reshape, sliceTo, transpose, unsqueeze } from './layout.ts'
import { matmul } from './linear.ts'
import { softmax } from './reduce.ts'
import { rotary } from './rotary.ts'

/** What an attention node is given; `[batch, pos, …]` throughout. */
export interface AttentionInputs {
  /** [batch, pos, head·d_head], before rotation. */
  readonly q: Tensor
  /** [batch, pos, kv_head·d_head], before rotation. */
  readonly k: Tensor
  /** [batch, pos, kv_head·d_head]. */
  readonly v: Tensor
  /** Index of the last valid slot of each row after this step, int32 [batch]. */
  readonly lastSlot: Tensor
  /** Longest row after this step, int32 scalar. */
  readonly total: Tensor
  /** Slot of each position, int64 [batch, pos]: past length + 0, 1, 2 … */
  readonly slots: Tensor
  /** Rotary tables [max_pos, rotary/2], when the family rotates. */
  readonly rotary?: { readonly cos: Tensor; readonly sin: Tensor; readonly positions: Tensor }
  /** Cached keys and values [batch, kv_head, capacity, d_head], written in place; where the cache `grows`, those of earlier steps alone. */
  readonly past?: { readonly keys: Tensor; readonly values: Tensor }
  /** Added to the scores, [batch or 1, head or 1, pos or 1, key]. */
  readonly bias?: Tensor
}

/** Settings of an attention node. */
export interface AttentionAttrs {
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  /** Factor on q·k. */
  readonly scale: number
  /** Rotary pairs: neighbours (x0, x1) or halves (x0, x_{n/2}). */
  readonly interleaved: boolean
  /** Scores become c·tanh(score/c). */
  readonly softcap?: number
  /** Only the last `window` keys are seen. */
  readonly window?: number
  /** Positions are read from `rotary.positions` instead of being the slots. */
  readonly explicitPositions: boolean
  /** The cache has no room for this step yet: keys and values that come out are longer by it. */
  readonly grows?: boolean
}

const names = ['q', 'k', 'v', 'last_slot', 'total', 'slots', 'cos', 'sin', 'positions', 'past_keys', 'past_values', 'bias'] as const
type InputName = (typeof names)[number]

function byName(inputs: readonly (Tensor | undefined)[]): Readonly<Partial<Record<InputName, Tensor>>> {
  return Object.fromEntries(names.map((n, i) => [n, inputs[i]]).filter(([, t]) => t))
}

defineOp({
  name: 'attention',
  doc: 'Causal attention over grouped heads, with rotary positions, window, soft-cap and a cache; outputs z, keys, values.',
  infer: (inputs, attrs) => {
    const a = attrs as unknown as AttentionAttrs
    const [q, k] = [need('attention', inputs, 0), need('attention', inputs, 1)]
    if (q.shape.at(-1) !== a.heads * a.headDim || k.shape.at(-1) !== a.kvHeads * a.headDim)
      throw new ShapeError(
        `'attention' with ${a.heads}/${a.kvHeads} heads of ${a.headDim} got q of width ${q.shape.at(-1)} and k of width ${k.shape.at(-1)}.`,
      )
    const past = inputs[names.indexOf('past_keys')]
    const cache: TensorType = {
      dtype: q.dtype,
      shape: [q.shape[0] as Dim, a.kvHeads, past && !a.grows ? (past.shape[2] as Dim) : 'total', a.headDim],
    }
    return [{ dtype: q.dtype, shape: q.shape }, cache, cache]
  },
  lower: (e, inputs, node) => {
    const a = node.attrs as unknown as AttentionAttrs
    const at = (n: InputName) => inputs[names.indexOf(n)] ?? ''
    const given = byName(node.inputs)
    // The kernel turns whole blocks of eight pairs; what it cannot turn is turned before it.
    const inside = given.cos !== undefined && (given.cos.shape[1] as number) % 8 === 0
    const before = given.cos !== undefined && !inside
    const turned = (x: string, heads: number) =>
      before ? lowerTurn(e, [x, at('slots'), at('cos'), at('sin')], given.cos as Tensor, heads, a) : x
    const bias = given.bias && lowerBias(e, at('bias'), given.bias, given.q as Tensor)
    const [cos, sin] = inside ? [at('cos'), at('sin')] : ['', '']
    return e.emit(
      'GroupQueryAttention',
      [
        turned(at('q'), a.heads),
        turned(at('k'), a.kvHeads),
        at('v'),
        at('past_keys'),
        at('past_values'),
        at('last_slot'),
        at('total'),
        cos,
        sin,
        '',
        bias ?? '',
      ],
      {
        num_heads: a.heads,
        kv_num_heads: a.kvHeads,
        scale: { f: a.scale },
        do_rotary: inside ? 1 : 0,
        rotary_interleaved: a.interleaved ? 1 : 0,
        ...(a.softcap ? { softcap: { f: a.softcap } } : {}),
        ...(a.window ? { local_window_size: a.window } : {}),
      },
      { outputs: 3, domain: 'com.microsoft' },
    )
  },
  // The runtime's kernel wants heads of a multiple of eight coordinates, and knows no float64.
  fuses: ({ attrs, inputs }) => (attrs as unknown as AttentionAttrs).headDim % 8 === 0 && inputs[0]?.dtype !== 'float64',
  expand: (inputs, attrs) => expandAttention(byName(inputs), attrs),
})

/** Rotation as a node of its own. */
function lowerTurn(e: Emitter, inputs: readonly string[], table: Tensor, heads: number, a: AttentionAttrs): string {
  const rotated = 2 * (table.shape[1] as number)
  const attrs = { interleaved: a.interleaved ? 1 : 0, num_heads: heads, rotary_embedding_dim: rotated === a.headDim ? 0 : rotated }
  return e.emit('RotaryEmbedding', inputs, attrs, { domain: 'com.microsoft' })[0] as string
}

/** The kernel wants a bias for every query. */
function lowerBias(e: Emitter, name: string, bias: Tensor, q: Tensor): string {
  if (bias.shape[2] !== 1) return name
  return e.emit('Expand', [name, e.sizes(bias.shape.with(2, q.shape[1] as Dim), [bias, q])])[0] as string
}

function expandAttention(t: Readonly<Partial<Record<InputName, Tensor>>>, attrs: Attrs): Expansion {
  const a = attrs as unknown as AttentionAttrs
  const { q, k, v, slots, total } = t as Record<InputName, Tensor>
  const [batch, pos] = q.shape as [Dim, Dim]
  const heads = (x: Tensor, n: number) => reshape(x, [batch, pos, n, a.headDim])
  const positions = a.explicitPositions && t.positions ? t.positions : slots
  const rotate = (x: Tensor, n: number) =>
    heads(t.cos && t.sin ? rotary(x, positions, { cos: t.cos, sin: t.sin }, { heads: n, interleaved: a.interleaved }) : x, n)
  const qTurned = rotate(q, a.heads)
  const kTurned = rotate(k, a.kvHeads)
  const headsFirst = (x: Tensor) => transpose(x, [0, 2, 1, 3])
  const qRot = headsFirst(qTurned)
  const kRot = headsFirst(kTurned)
  const vHeads = headsFirst(heads(v, a.kvHeads))

  const write = (past: Tensor | undefined, fresh: Tensor) => {
    if (!past) return fresh
    if (a.grows) return sliceTo(concat([past, fresh], 2), 2, total, 'total')
    const index = expand(unsqueeze(unsqueeze(slots, 1), 3), fresh.shape, fresh)
    return scatterElements(past, index, fresh, 2)
  }
  const keyCache = write(t.past_keys, kRot)
  const valueCache = write(t.past_values, vHeads)
  const seen = (cache: Tensor, past: Tensor | undefined) => (past && !a.grows ? sliceTo(cache, 2, total, 'total') : cache)
  const keys = seen(keyCache, t.past_keys)
  const values = seen(valueCache, t.past_values)

  // Heads that share a key-value head are folded into its rows, so that nothing is repeated in memory.
  const keyDim = keys.shape[2] as Dim
  const folded = (x: Tensor, width: Dim) => reshape(x, [batch, a.kvHeads, -1, width])
  let scores = reshape(matmul(folded(qRot, a.headDim), keys, { transB: true, alpha: a.scale }), [batch, a.heads, pos, keyDim])
  if (a.softcap) scores = mul(tanh(mul(scores, 1 / a.softcap)), a.softcap)
  if (t.bias) scores = add(scores, t.bias)
  const querySlot = unsqueeze(slots, 2)
  const keySlot = iota(keys, 2)
  let visible = lessEqual(keySlot, querySlot)
  if (a.window) visible = and(visible, not(lessEqual(keySlot, sub(querySlot, scalar(a.window, 'int64')))))
  // Added, not chosen: the sum of a mask of one head is several times faster, and its gradient is nothing at all.
  const hidden = where(unsqueeze(visible, 1), scalar(0, scores.dtype), Number.NEGATIVE_INFINITY)
  const masked = add(scores, hidden)
  // What is masked stays masked, whatever an edit writes there: else a query would see keys that a cached run does not have yet.
  const probs = softmax(apply1('hide', [masked, hidden], { probabilities: false }))
  const kept = apply1('hide', [probs, hidden], { probabilities: true })
  const z = reshape(matmul(folded(kept, keyDim), values), [batch, a.heads, pos, a.headDim])
  return {
    outputs: [reshape(transpose(z, [0, 2, 1, 3]), [batch, pos, a.heads * a.headDim]), keyCache, valueCache],
    inner: { attn_scores: masked, attn_probs: probs, q_rot: qTurned, k_rot: kTurned },
  }
}

/** Whether scores have had a mask added already. */
const isHidden = (scores: Tensor, mask: Tensor) => scores.node.op.name === 'add' && scores.node.inputs[1] === mask

defineOp({
  name: 'hide',
  doc: 'Attention scores plus a mask of 0 and −∞, or probabilities with 0 where it is −∞; nothing is done where the values are masked so already.',
  infer: (inputs) => {
    need('hide', inputs, 1)
    return [need('hide', inputs, 0)]
  },
  expand: ([value, hidden], { probabilities }) => {
    const [x, mask] = [value as Tensor, hidden as Tensor]
    if (!probabilities) return { outputs: [isHidden(x, mask) ? x : add(x, mask)] }
    const whole = x.node.op.name === 'softmax' && isHidden(x.node.inputs[0] as Tensor, mask)
    return { outputs: [whole ? x : where(less(mask, 0), scalar(0, x.dtype), x)] }
  },
})

/** Causal attention; `z` is [batch, pos, head·d_head], `keys` and `values` are the cache after this step. */
export function attention(inputs: AttentionInputs, attrs: AttentionAttrs): { z: Tensor; keys: Tensor; values: Tensor } {
  const ordered: Record<InputName, Tensor | undefined> = {
    q: inputs.q,
    k: inputs.k,
    v: inputs.v,
    last_slot: inputs.lastSlot,
    total: inputs.total,
    slots: inputs.slots,
    cos: inputs.rotary?.cos,
    sin: inputs.rotary?.sin,
    positions: inputs.rotary?.positions,
    past_keys: inputs.past?.keys,
    past_values: inputs.past?.values,
    bias: inputs.bias,
  }
  const [z, keys, values] = apply(
    'attention',
    names.map((n) => ordered[n]),
    { ...attrs },
  ) as [Tensor, Tensor, Tensor]
  return { z, keys, values }
}
