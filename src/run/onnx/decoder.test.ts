/** @file Exports of a decoder with a key-value cache: canonical sites, where, gradients, generation, and writing the edited file. */
import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import type { NDArray } from '../../base/types.ts'
import { randomStream } from '../../models/sampling.ts'
import { add, scale, zero } from '../../sites/index.ts'
import { getRuntime, sum } from '../../tensor/index.ts'
import { loadOnnx } from './load.ts'
import type { OnnxModel } from './model.ts'
import { encodeModel, fileOf, floats, type GraphInit, loadBytes, longs, type NodeInit } from './testing.ts'

const [d, width, vocab] = [4, 6, 7]

/** A decoder of two blocks without rotation, named as exporters name Llama's modules; one head. */
function decoder(): GraphInit {
  const random = randomStream(3)
  const matrix = (rows: number, columns: number) =>
    floats(
      [rows, columns],
      Array.from({ length: rows * columns }, () => random() * 2 - 1),
    )
  const weights: Record<string, NDArray> = {
    table: matrix(vocab, d),
    ones: floats([d], [1, 1, 1, 1]),
    heads: longs([4], [0, 0, 1, d]),
    flat: longs([3], [0, 0, d]),
    head: matrix(d, vocab),
    big: floats([], [-1e9]),
    zeroInt: longs([], [0]),
    oneInt: longs([], [1]),
    first: longs([1], [0]),
    second: longs([1], [1]),
  }
  const nodes: NodeInit[] = [
    ['Gather', ['table', 'input_ids'], ['/model/embed_tokens/Gather_output_0']],
    // Positions of queries and keys, from the mask's length and the tokens'.
    ['Shape', ['attention_mask'], ['maskShape']],
    ['Gather', ['maskShape', 'oneInt'], ['total']],
    ['Shape', ['input_ids'], ['idsShape']],
    ['Gather', ['idsShape', 'oneInt'], ['fresh']],
    ['Sub', ['total', 'fresh'], ['past']],
    ['Range', ['past', 'total', 'oneInt'], ['queries']],
    ['Range', ['zeroInt', 'total', 'oneInt'], ['keys']],
    ['Unsqueeze', ['queries', 'second'], ['column']],
    ['Less', ['column', 'keys'], ['later']],
    ['Cast', ['later'], ['laterFloat'], { to: 1 }],
    ['Mul', ['laterFloat', 'big'], ['causal']],
  ]
  let stream = '/model/embed_tokens/Gather_output_0'
  for (let l = 0; l < 2; l++) {
    const at = (name: string) => `/model/layers.${l}/${name}`
    for (const name of ['q', 'k', 'v', 'o']) weights[`w${name}${l}`] = matrix(d, d)
    weights[`up${l}`] = matrix(d, width)
    weights[`gate${l}`] = matrix(d, width)
    weights[`down${l}`] = matrix(width, d)
    const a = (name: string) => at(`self_attn/${name}`)
    nodes.push(['LayerNormalization', [stream, 'ones'], [at('input_layernorm/out')]])
    for (const name of ['q', 'k', 'v'])
      nodes.push(
        ['MatMul', [at('input_layernorm/out'), `w${name}${l}`], [a(`${name}_proj/MatMul_output_0`)]],
        ['Reshape', [a(`${name}_proj/MatMul_output_0`), 'heads'], [a(`${name}4`)]],
        ['Transpose', [a(`${name}4`)], [a(`${name}t`)], { perm: [0, 2, 1, 3] }],
      )
    nodes.push(
      ['Concat', [`past_key_values.${l}.key`, a('kt')], [`present.${l}.key`], { axis: 2 }],
      ['Concat', [`past_key_values.${l}.value`, a('vt')], [`present.${l}.value`], { axis: 2 }],
      ['Transpose', [`present.${l}.key`], [a('turned')], { perm: [0, 1, 3, 2] }],
      ['MatMul', [a('qt'), a('turned')], [a('products')]],
      ['Add', [a('products'), 'causal'], [a('masked')]],
      ['Softmax', [a('masked')], [a('Softmax_output_0')], { axis: -1 }],
      ['MatMul', [a('Softmax_output_0'), `present.${l}.value`], [a('mixed')]],
      ['Transpose', [a('mixed')], [a('back')], { perm: [0, 2, 1, 3] }],
      ['Reshape', [a('back'), 'flat'], [a('side')]],
      ['MatMul', [a('side'), `wo${l}`], [a('o_proj/MatMul_output_0')]],
      ['Add', [stream, a('o_proj/MatMul_output_0')], [at('Add_output_0')]],
      ['LayerNormalization', [at('Add_output_0'), 'ones'], [at('post_attention_layernorm/out')]],
      ['MatMul', [at('post_attention_layernorm/out'), `gate${l}`], [at('mlp/gate_proj/MatMul_output_0')]],
      ['MatMul', [at('post_attention_layernorm/out'), `up${l}`], [at('mlp/up_proj/MatMul_output_0')]],
      ['Sigmoid', [at('mlp/gate_proj/MatMul_output_0')], [at('mlp/act_fn/Sigmoid_output_0')]],
      ['Mul', [at('mlp/gate_proj/MatMul_output_0'), at('mlp/act_fn/Sigmoid_output_0')], [at('mlp/act_fn/Mul_output_0')]],
      ['Mul', [at('mlp/act_fn/Mul_output_0'), at('mlp/up_proj/MatMul_output_0')], [at('mlp/Mul_output_0')]],
      ['MatMul', [at('mlp/Mul_output_0'), `down${l}`], [at('mlp/down_proj/MatMul_output_0')]],
      ['Add', [at('Add_output_0'), at('mlp/down_proj/MatMul_output_0')], [at('Add_1_output_0')]],
    )
    stream = at('Add_1_output_0')
  }
  nodes.push(['LayerNormalization', [stream, 'ones'], ['/model/norm/out']], ['MatMul', ['/model/norm/out', 'head'], ['logits']])
  const cache = ['key', 'value'].flatMap((part) =>
    [0, 1].map((l) => [`past_key_values.${l}.${part}`, ['float32', 'batch', 1, 'past', d]] as const),
  )
  return {
    inputs: {
      input_ids: ['int64', 'batch', 'pos'],
      attention_mask: ['int64', 'batch', 'past + pos'],
      ...Object.fromEntries(cache as [string, ['float32', string, number, string, number]][]),
    },
    weights,
    nodes,
    outputs: ['logits', ...[0, 1].flatMap((l) => [`present.${l}.key`, `present.${l}.value`])],
  }
}

const load = () => loadBytes(encodeModel(decoder()))
const numbers = (v: { data: ArrayLike<unknown> } | undefined) => Array.from(v?.data ?? [], Number)
const rows = [[1, 2, 3, 4]]

async function written(model: OnnxModel, prompt: readonly number[]): Promise<readonly number[]> {
  const steps = model.generate(prompt, { temperature: 0, maxNewTokens: 6 })
  for (;;) {
    const next = await steps.next()
    if (next.done) return next.value.tokens
  }
}

test('canonical sites are found by the names of modules, and are the values that they name', async () => {
  const model = await load()
  expect(model.family).toBe('llama')
  const at = (site: string) => model.resolve(site)[0]?.tensor.name
  expect(
    ['resid_pre.0', 'resid_pre.1', 'resid_mid.1', 'resid_post.1', 'attn_probs.1', 'mlp_act.0', 'q.0', 'z.1', 'final_norm'].map(at),
  ).toEqual([
    '/model/embed_tokens/Gather_output_0',
    '/model/layers.0/Add_1_output_0',
    '/model/layers.1/Add_output_0',
    '/model/layers.1/Add_1_output_0',
    '/model/layers.1/self_attn/Softmax_output_0',
    '/model/layers.0/mlp/Mul_output_0',
    '/model/layers.0/self_attn/q4',
    '/model/layers.1/self_attn/back',
    '/model/norm/out',
  ])
  expect(model.resolve('resid_post.*').map((s) => s.site)).toEqual(['resid_post.0', 'resid_post.1'])
  expect(() => model.resolve('q_rot.0')).toThrow('cannot be had from this file')
  const { taps } = await model.run(model.tokenInputs(rows), { taps: ['resid_mid.1', 'mlp_out.1', 'resid_post.1', 'attn_probs.0'] })
  const sums = numbers(taps['resid_mid.1']).map((v, i) => v + (numbers(taps['mlp_out.1'])[i] as number))
  for (const [i, v] of numbers(taps['resid_post.1']).entries()) expect(v).toBeCloseTo(sums[i] as number, 5)
  expect(taps['attn_probs.0']?.shape).toEqual([1, 1, 4, 4])
  expect(numbers(taps['attn_probs.0']).slice(0, 4)).toEqual([1, 0, 0, 0])
  await model.dispose()
})

test('a where clause acts where it says, on the tokens of the input', async () => {
  const model = await load()
  const inputs = model.tokenInputs(rows)
  const plain = numbers((await model.run(inputs, { taps: ['resid_post.0'] })).taps['resid_post.0'])
  const edited = model.with(add('resid_post.0', [1, 2, 3, 4], { where: { tokens: [3] } }))
  const out = numbers((await edited.run(inputs, { taps: ['resid_post.0'] })).taps['resid_post.0'])
  expect(out.map((v, i) => Math.round(1e4 * (v - (plain[i] as number))) / 1e4)).toEqual([0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0])
  const nowhere = await model.with(zero('resid_post.0', { where: { tokens: [6] } })).run(inputs)
  expect(nowhere.unfired).toHaveLength(1)
  await model.dispose()
})

test('gradients equal finite differences, with edits in force, at sites and weights', async () => {
  const base = await load()
  const model = base.with(scale('mlp_out.0', 1.5))
  const inputs = model.tokenInputs(rows)
  const of = { kind: 'next-token' } as const
  const at = ['resid_post.0', 'attn_probs.1', 'z.1', 'mlp_act.1']
  const g = await model.gradient({ of, at, parameters: ['gate1', 'head'] }, inputs)
  const loss = async (edited: OnnxModel) => {
    const logits = numbers((await edited.run(inputs, { outputs: ['logits'] })).outputs.logits)
    const target = rows[0] as number[]
    let total = 0
    for (let p = 0; p < 3; p++) {
      const row = logits.slice(p * vocab, (p + 1) * vocab)
      total -= (row[target[p + 1] as number] as number) - Math.log(row.reduce((s, v) => s + Math.exp(v), 0))
    }
    return total / 3
  }
  expect(g.value).toBeCloseTo(await loss(model), 5)
  const random = randomStream(9)
  for (const [site, value] of [...Object.entries(g.sites), ...Object.entries(g.parameters).map(([n, v]) => [`path:${n}`, v] as const)]) {
    const direction = floats(
      value.shape,
      Array.from({ length: value.data.length }, () => random() - 0.5),
    )
    const moved = (by: number) => loss(model.with(add(site, direction, { scale: by })))
    const slope = ((await moved(1e-2)) - (await moved(-1e-2))) / 2e-2
    expect(numbers(value).reduce((s, v, i) => s + v * (direction.data[i] as number), 0)).toBeCloseTo(slope, 3)
  }
  const sums = await model.gradient({ of: { sum: 'resid_post.1' }, at: 'resid_post.1' }, inputs)
  expect(numbers(sums.sites['resid_post.1'])).toEqual(new Array(16).fill(1))
  const fn = await model.gradient({ of: (run) => sum(run.site('mlp_out.1')), at: 'mlp_out.1' }, inputs)
  expect(numbers(fn.sites['mlp_out.1'])).toEqual(new Array(16).fill(1))
  await expect(model.gradient({ of: { sum: 'resid_post.0' }, at: 'resid_post.1' }, inputs)).rejects.toThrow('does not depend on')
  await base.dispose()
})

test('an operator without a rule is refused by name before anything runs', async () => {
  const model = await loadBytes(
    encodeModel({
      inputs: { x: ['float32', 2] },
      nodes: [
        ['Neg', ['x'], ['a']],
        ['Asinh', ['a'], ['b']],
      ],
      outputs: ['b'],
    }),
  )
  await expect(model.gradient({ of: { sum: 'path:b' }, at: 'path:a' }, { x: floats([2], [1, 2]) })).rejects.toThrow("The operator 'Asinh'")
  expect(model.statistics.compiled).toBe(0)
  await model.dispose()
})

test('generation with the cache writes what a recomputation without it does, edited too', async () => {
  const base = await load()
  for (const model of [base, base.with(add('resid_post.0', [3, -2, 1, 0], { where: { phase: 'generated' } }))]) {
    const tokens = await written(model, [1, 2, 3])
    const ids = [1, 2, 3]
    for (const token of tokens) {
      const { outputs } = await model.run(model.tokenInputs([ids]), { outputs: ['logits'], promptLength: 3 })
      const last = numbers(outputs.logits).slice(-vocab)
      expect(token).toBe(last.indexOf(Math.max(...last)))
      ids.push(token)
    }
    expect(tokens).toHaveLength(6)
  }
  await base.dispose()
})

test('the exported file is run by the plain runtime, and gives what the edited model gives', async () => {
  const base = await load()
  const edited = base.with(add('resid_post.0', [3, -2, 1, 0], { scale: 0.5 }), scale('attn_probs.1', 0.5))
  const path = fileOf(new Uint8Array(0), 'edited.onnx')
  await edited.export(path)
  const feeds = edited.complete(edited.tokenInputs(rows))
  const runtime = await getRuntime()
  const session = await runtime.compile(readFileSync(path), { device: 'cpu', threads: 1, memory: new Map() })
  const given = Object.fromEntries(
    Object.entries(feeds).map(([n, v]) => [n, runtime.tensor(v.dtype as 'float32', v.shape, v.data as Float32Array)]),
  )
  const out = await session.run(given, { logits: null, 'present.1.key': null })
  const ours = (await edited.run(feeds)).outputs
  expect(Array.from(out.logits?.data as Float32Array)).toEqual(numbers(ours.logits))
  expect(Array.from(out['present.1.key']?.data as Float32Array)).toEqual(numbers(ours['present.1.key']))
  expect(numbers(ours.logits)).not.toEqual(numbers((await base.run(feeds)).outputs.logits))
  await session.release()
  const again = await loadOnnx(path, { id: 'edited', hash: async () => '' }, { threads: 1 })
  expect(again.family).toBe('llama')
  await expect(base.with(zero('resid_post.0', { where: { positions: 0 } })).export(path)).rejects.toThrow(
    "its 'where' is told by the tokens",
  )
  await again.dispose()
  await base.dispose()
})
