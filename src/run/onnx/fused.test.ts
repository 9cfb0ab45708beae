/** @file Fused attention nodes: written in simpler ops they give what the runtime's own kernels give, in every setting; their pattern is one. */
import { expect, test } from 'vitest'
import type { NDArray } from '../../base/types.ts'
import { randomStream } from '../../models/sampling.ts'
import { scale } from '../../sites/index.ts'
import type { OnnxValue } from './core.ts'
import { encodeModel, floats, type GraphInit, loadBytes, type NodeInit } from './testing.ts'

const random = randomStream(5)
const array = (...shape: number[]) =>
  floats(
    shape,
    Array.from({ length: shape.reduce((p, n) => p * n, 1) }, () => random() * 2 - 1),
  )
const ints = (shape: readonly number[], data: readonly number[]): NDArray => ({ dtype: 'int32', shape, data: Int32Array.from(data) })

const [rows, pos, heads, kv, d] = [2, 4, 4, 2, 16]
const node = '/model/layers.0/self_attn/fused'

interface Case {
  readonly op: string
  readonly attrs: NonNullable<NodeInit[3]>
  /** Inputs of the node in order; undefined leaves one out. */
  readonly inputs: readonly (NDArray | undefined)[]
  /** Inputs that are weights, since their shape must be known. */
  readonly weights?: readonly number[]
  /** The rows have caches of different lengths: what comes out behind their ends is as the kernel likes. */
  readonly ragged?: true
}

/** A block with nothing but attention and a projection that has the name of a feed-forward network's last one. */
function graphOf({ op, attrs, inputs, weights = [] }: Case): { init: GraphInit; feeds: Record<string, NDArray> } {
  const names = inputs.map((x, i) => (x ? `in${i}` : ''))
  const width = op === 'Attention' ? ((inputs[1] as NDArray).shape[1] as number) / 3 : heads * d
  const isWeight = (i: number) => weights.includes(i)
  const declared = inputs.flatMap((x, i) =>
    x && !isWeight(i) ? [[`in${i}`, [x.dtype, ...x.shape.map((n, a) => (a < x.shape.length - 1 ? `in${i}:${a}` : n))]] as const] : [],
  )
  return {
    init: {
      inputs: Object.fromEntries(declared) as never,
      weights: {
        w: array(width, width),
        ...Object.fromEntries(inputs.flatMap((x, i) => (x && isWeight(i) ? [[`in${i}`, x] as const] : []))),
      },
      nodes: [
        [`com.microsoft:${op}`, names, [node, ...(op === 'Attention' ? ['present'] : ['present.key', 'present.value'])], attrs],
        ['MatMul', [node, 'w'], ['/model/layers.0/mlp/down_proj/out']],
      ],
      outputs: ['/model/layers.0/mlp/down_proj/out', ...(op === 'Attention' ? ['present'] : ['present.key', 'present.value'])],
    },
    feeds: Object.fromEntries(inputs.flatMap((x, i) => (x && !isWeight(i) ? [[`in${i}`, x] as const] : []))),
  }
}

const qkv = (k = kv, n = rows) => [array(n, pos, heads * d), array(n, pos, k * d), array(n, pos, k * d)]
const past = (n: number, k = kv, b = rows) => [array(b, k, n, d), array(b, k, n, d)]
const tables = () => [array(16, d / 2), array(16, d / 2)]
const gqa = { num_heads: heads, kv_num_heads: kv }
const prompt = [ints([rows], [pos - 1, pos - 1]), ints([], [pos])]
/** The runtime goes on by several tokens in one row only. */
const later = [ints([1], [6]), ints([], [7])]
const none = [undefined, undefined]

const cases: Readonly<Record<string, Case>> = {
  'GroupQueryAttention at a prompt': { op: 'GroupQueryAttention', attrs: gqa, inputs: [...qkv(), ...past(0), ...prompt] },
  'GroupQueryAttention without a cache': { op: 'GroupQueryAttention', attrs: gqa, inputs: [...qkv(), ...none, ...prompt] },
  'GroupQueryAttention with rotation, soft-cap, window and scale, after a cache': {
    op: 'GroupQueryAttention',
    attrs: { ...gqa, do_rotary: 1, softcap: { f: 2 }, local_window_size: 3, scale: { f: 0.3 } },
    inputs: [...qkv(kv, 1), ...past(3, kv, 1), ...later, ...tables()],
    weights: [7, 8],
  },
  'GroupQueryAttention with interleaved rotation and packed heads': {
    op: 'GroupQueryAttention',
    attrs: { ...gqa, do_rotary: 1, rotary_interleaved: 1 },
    inputs: [array(rows, pos, (heads + 2 * kv) * d), ...none, ...past(0), ...prompt, ...tables()],
    weights: [7, 8],
  },
  'GroupQueryAttention over rows of different lengths': {
    op: 'GroupQueryAttention',
    ragged: true,
    attrs: { ...gqa, do_rotary: 1 },
    inputs: [
      array(rows, 1, heads * d),
      array(rows, 1, kv * d),
      array(rows, 1, kv * d),
      ...past(4),
      ints([rows], [4, 2]),
      ints([], [5]),
      ...tables(),
    ],
    weights: [7, 8],
  },
  'GroupQueryAttention with a bias': {
    op: 'GroupQueryAttention',
    attrs: gqa,
    inputs: [...qkv(kv, 1), ...past(3, kv, 1), ...later, ...none, undefined, array(1, heads, pos, 7)],
  },
  'MultiHeadAttention with a bias of projections, a mask and a bias of scores': {
    op: 'MultiHeadAttention',
    attrs: { num_heads: heads },
    inputs: [...qkv(heads), array(3 * heads * d), ints([rows, pos], [1, 1, 1, 1, 1, 1, 0, 0]), array(1, heads, pos, pos)],
    weights: [3],
  },
  'MultiHeadAttention that looks back, after a cache': {
    op: 'MultiHeadAttention',
    attrs: { num_heads: heads, unidirectional: 1, scale: { f: 0.5 } },
    inputs: [...qkv(heads), undefined, undefined, undefined, ...past(3, heads)],
  },
  'Attention with lengths of rows': {
    op: 'Attention',
    attrs: { num_heads: heads },
    inputs: [array(rows, pos, 24), array(24, 3 * heads * d), array(3 * heads * d), ints([rows], [4, 2])],
    weights: [1, 2],
  },
  'Attention that looks back, with a mask and a cache': {
    op: 'Attention',
    attrs: { num_heads: heads, unidirectional: 1 },
    inputs: [
      array(rows, pos, 24),
      array(24, 3 * heads * d),
      array(3 * heads * d),
      ints([rows, pos + 2], [1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1]),
      array(2, rows, heads, 2, d),
    ],
    weights: [1, 2],
  },
}

const numbers = (v: OnnxValue | undefined) => Array.from((v?.data ?? []) as ArrayLike<number>, Number)

for (const [name, one] of Object.entries(cases))
  test(`${name} is the same in simpler ops`, async () => {
    const { init, feeds } = graphOf(one)
    const model = await loadBytes(encodeModel(init))
    const fused = await model.run(feeds)
    const open = await model.run(feeds, { taps: ['attn_probs.0', 'attn_scores.0', 'z.0'] })
    for (const output of one.ragged ? model.outputs.slice(0, 1) : model.outputs) {
      const [ours, wanted] = [numbers(open.outputs[output]), numbers(fused.outputs[output])]
      expect(open.outputs[output]?.shape).toEqual(fused.outputs[output]?.shape)
      const top = Math.max(...wanted.map(Math.abs))
      for (const [i, w] of wanted.entries()) expect(Math.abs((ours[i] as number) - w) / top).toBeLessThan(1e-5)
    }
    const probs = open.taps['attn_probs.0']
    const keys = probs?.shape.at(-1) as number
    const values = numbers(probs as OnnxValue)
    for (let i = 0; i < values.length; i += keys) expect(values.slice(i, i + keys).reduce((a, b) => a + b, 0)).toBeCloseTo(1, 5)
    const half = await model.with(scale('attn_probs.0', 0.5)).run(feeds)
    const main = model.outputs[0] as string
    for (const [i, w] of numbers(fused.outputs[main]).entries()) expect(numbers(half.outputs[main])[i]).toBeCloseTo(w / 2, 4)
    await model.dispose()
  })

test('a fused node in a setting that is not understood says so at its sites, and runs as it is', async () => {
  const { init, feeds } = graphOf({
    op: 'GroupQueryAttention',
    attrs: { ...gqa, smooth_softmax: 1 },
    inputs: [...qkv(), ...past(0), ...prompt],
  })
  const model = await loadBytes(encodeModel(init))
  expect(() => model.resolve('attn_probs.0')).toThrow('it sets smooth_softmax')
  expect((await model.run(feeds)).outputs['present.key']?.shape).toEqual([rows, kv, pos, d])
  await model.dispose()
})
