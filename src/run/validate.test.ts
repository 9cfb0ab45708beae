import { existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { CancelledError, FormatError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { writeSafetensors } from '../models/formats/index.ts'
import { add, zero } from '../sites/edits.ts'
import { load } from './index.ts'
import type { Model } from './model.ts'
import { tinyModel } from './testing.ts'
import { validate } from './validate.ts'
import { differenceOf } from './validate-compare.ts'

const shared = fileURLToPath(new URL('../../../shared/', import.meta.url))

describe('validate', () => {
  let home: string
  let model: Model
  let recorded: Record<string, NDArray>
  const vector = Float32Array.from({ length: 32 }, (_, i) => Math.sin(i))
  const int64 = (values: readonly number[], shape: readonly number[]): NDArray => ({
    dtype: 'int64',
    shape,
    data: BigInt64Array.from(values, BigInt),
  })
  const float32 = (values: ArrayLike<number>, shape: readonly number[]): NDArray => ({
    dtype: 'float32',
    shape,
    data: Float32Array.from(values),
  })

  beforeAll(async () => {
    home = await mkdtemp(join(tmpdir(), 'actlens-validate-'))
    model = await tinyModel()
    const inputs = {
      input_ids: int64([5, 6, 7, 8, 0, 0, 9, 10], [2, 4]),
      attention_mask: int64([1, 1, 1, 1, 0, 0, 1, 1], [2, 4]),
    }
    const taps = ['resid_post.1', 'attn_scores.0', 'blocks.2.hook_resid_pre', 'q.0'] as const
    const plain = await model.run(inputs, { taps })
    const array = ({ dtype, shape, data }: NDArray): NDArray => ({ dtype, shape, data })
    const last = [0, 1].flatMap((b) => [-2, -1].flatMap((p) => [...plain.taps['resid_post.1'].at(b, p)]))
    const { tokens } = await model.generate({ ids: [5, 6, 7, 8] }, { maxNewTokens: 6, ignoreEos: true }).result()
    const steered = model.with(add('resid_post.1', vector))
    const steeredTokens = await steered.generate({ ids: [5, 6, 7, 8] }, { maxNewTokens: 6, ignoreEos: true }).result()
    const other = await model.run({ ids: [11, 12, 13] })
    recorded = {
      ...inputs,
      'steer.vector': float32(vector, [32]),
      'resid_post.1': array(plain.taps['resid_post.1']),
      'resid_post.1.last2': float32(last, [2, 2, 32]),
      'attn_scores.0': array(plain.taps['attn_scores.0']),
      'blocks.2.hook_resid_pre': array(plain.taps['blocks.2.hook_resid_pre']),
      'q.0': array(plain.taps['q.0']),
      logits: array(plain.logits),
      'steered.logits': array((await steered.run(inputs)).logits),
      'ablated.logits': array((await model.with(zero('mlp_out.0')).run(inputs)).logits),
      greedy: int64(tokens, [1, 6]),
      'steered.greedy': int64(steeredTokens.tokens, [1, 6]),
      'other.input_ids': int64([11, 12, 13], [1, 3]),
      'other.logits.last': float32(other.logits.at(0, -1), [1, 61]),
    }
  })
  afterAll(async () => {
    await model.dispose()
    await rm(home, { recursive: true, force: true })
  })

  const against = async (changed: Record<string, NDArray> = {}, json?: unknown) => {
    await writeSafetensors(join(home, 'golden.safetensors'), { ...recorded, ...changed })
    if (json !== undefined) await writeFile(join(home, 'golden.json'), JSON.stringify(json))
    const result = await validate(model, home)
    await rm(join(home, 'golden.json'), { force: true })
    return { ...result, of: (name: string) => result.checks.find((c) => c.name === name) }
  }
  const changed = (name: string, place: number, by: number): Record<string, NDArray> => {
    const array = recorded[name] as NDArray<Float32Array>
    const data = array.data.slice()
    data[place] = (data[place] as number) + by
    return { [name]: { ...array, data } }
  }

  it('passes what was recorded, under canonical names and aliases, of runs, edits and generations', async () => {
    const { passed, failed, notChecked } = await against()
    expect({ passed, failed, notChecked }).toEqual({ passed: 11, failed: 0, notChecked: 0 })
  })

  it('fails a value beyond 1e-4 of the scale, and no other', async () => {
    const scale = Math.max(...(recorded.logits as NDArray<Float32Array>).data.map(Math.abs))
    const within = await against(changed('logits', 3, 0.9e-4 * scale))
    expect(within.failed).toBe(0)
    const beyond = await against(changed('logits', 3, 1.2e-4 * scale))
    expect(beyond.checks.filter((c) => c.status === 'fail').map((c) => c.name)).toEqual(['logits'])
    expect(beyond.of('logits')?.error).toBeCloseTo(1.2e-4 * scale, 6)
  })

  it('does not look at padding', async () => {
    const result = await against(changed('resid_post.1', 4 * 32, 5))
    expect(result.failed).toBe(0)
  })

  it('compares infinities as such, and fails numbers that are none', async () => {
    const scores = recorded['attn_scores.0'] as NDArray<Float32Array>
    const masked = scores.data.indexOf(Number.NEGATIVE_INFINITY)
    const data = scores.data.slice()
    data[masked] = 0
    const result = await against({ 'attn_scores.0': { ...scores, data }, ...changed('q.0', 0, Number.NaN) })
    expect(result.of('attn_scores.0')).toMatchObject({ status: 'fail', note: expect.stringMatching(/1 values are infinite/) })
    expect(result.of('q.0')?.status).toBe('fail')
  })

  it('fails another shape and another token, and says which', async () => {
    const wide = recorded['resid_post.1'] as NDArray
    const tokens = Array.from((recorded.greedy as NDArray).data, Number)
    const result = await against({
      'resid_post.1': { ...wide, shape: [2, 32, 4] },
      greedy: int64([...tokens.slice(0, 5), ((tokens[5] as number) + 1) % 61], [1, 6]),
    })
    expect(result.of('resid_post.1')).toMatchObject({ status: 'fail', note: 'ours has the shape [2, 4, 32]' })
    expect(result.of('greedy')).toMatchObject({ status: 'fail', error: 1, tolerance: 0, note: expect.stringMatching(/token 5 of row 0/) })
  })

  it('lists what it cannot check with a reason', async () => {
    const one = float32([1], [1])
    const names = [
      'grad.something.else',
      'grad.param.model.nose.weight',
      'decoder.resid_post.0',
      'something.else',
      'pos_embeddings',
      'steered9.logits',
      'attn_probs.0.last',
    ]
    const result = await against(Object.fromEntries(names.map((n) => [n, one])))
    expect([result.failed, result.notChecked]).toEqual([0, names.length])
    const notes = Object.fromEntries(names.map((n) => [n, result.of(n)?.note]))
    expect(notes['grad.something.else']).toMatch(/^There is no site 'something\.else'/)
    expect(notes['grad.param.model.nose.weight']).toMatch(/reads no parameter 'model\.nose\.weight'/)
    expect(notes['something.else']).toMatch(/^There is no site 'something\.else'/)
    expect(notes['something.else']).not.toContain('Sites are')
    expect(notes.pos_embeddings).toMatch(/rotary/)
    expect(notes['steered9.logits']).toMatch(/how it was steered/)
    expect(notes['attn_probs.0.last']).toMatch(/no positions to take the last of/)
  })

  it('steers as golden.json says', async () => {
    const length = Math.sqrt(vector.reduce((s, v) => s + v * v, 0))
    const strong = await model.with(add('resid_post.0', vector, { scale: 30 / length })).run({ ids: [11, 12, 13] })
    const result = await against(
      { 'other.steered30.logits': float32(strong.logits.data, [1, 3, 61]) },
      { steering: { site: 'resid_post.0', scales: [6, 30] } },
    )
    expect(result.of('other.steered30.logits')?.status).toBe('pass')
    expect(result.of('steered.logits')?.status).toBe('fail')
  })

  it('computes losses and likelihoods, of windows too', async () => {
    const nll = async (row: number[]) => {
      const { data } = (await model.run({ ids: row })).logits
      return row.slice(1).map((id, t) => {
        const logits = Array.from(data.subarray(t * 61, (t + 1) * 61), Number)
        return Math.log(logits.reduce((s, v) => s + Math.exp(v), 0)) - (logits[id] as number)
      })
    }
    const ids = [1, 2, 3, 4, 5, 6, 7, 8]
    const windows = [...(await nll([1, 2, 3, 4])), ...(await nll([5, 6, 7, 8]))]
    const first = await nll([5, 6, 7, 8])
    const result = await against({
      loss: float32([first.reduce((a, b) => a + b) / 3], []),
      'corpus.input_ids': { dtype: 'int32', shape: [8], data: Int32Array.from(ids) },
      'corpus.nll': float32(windows, [2, 3]),
    })
    expect([result.of('loss')?.status, result.of('corpus.nll')?.status, result.failed]).toEqual(['pass', 'pass', 0])
  })

  it('compares gradients of the loss of the first row, within 1e-3 of their scale', async () => {
    const name = 'model.layers.1.mlp.up_proj.weight'
    const g = await model.gradient({ of: { kind: 'next-token' }, at: 'resid_post.0', parameters: [name] }, { ids: [5, 6, 7, 8] })
    const site = g.sites['resid_post.0'] as NDArray<Float32Array>
    const rows = new Float32Array(2 * site.data.length)
    rows.set(site.data)
    const parameter = g.parameters[name] as NDArray<Float32Array>
    const good = { 'grad.resid_post.0': float32(rows, [2, 4, 32]), [`grad.param.${name}`]: parameter }
    const unknown = { 'grad.param.nose': float32([1], [1]) }
    const result = await against({ ...good, ...unknown })
    expect([result.of('grad.resid_post.0')?.status, result.of(`grad.param.${name}`)?.status]).toEqual(['pass', 'pass'])
    expect(result.of('grad.param.nose')?.status).toBe('not checked')
    const scale = Math.max(...parameter.data.map(Math.abs))
    const off = async (by: number) => {
      const data = parameter.data.slice()
      data[7] = (data[7] as number) + by * scale
      return (await against({ [`grad.param.${name}`]: { ...parameter, data } })).of(`grad.param.${name}`)?.status
    }
    expect([await off(0.9e-3), await off(1.2e-3)]).toEqual(['pass', 'fail'])
  })

  it('refuses a folder without records, a file without anything to check, and a cancelled call', async () => {
    await expect(validate(model, join(home, 'none'))).rejects.toThrow(FormatError)
    await writeSafetensors(join(home, 'vain.safetensors'), { input_ids: recorded.input_ids as NDArray, 'x.y': float32([1], [1]) })
    await expect(validate(model, home, { file: 'vain.safetensors' })).rejects.toThrow(/no tensor that could be checked/)
    await against()
    await expect(validate(model, home, { signal: AbortSignal.abort() })).rejects.toThrow(CancelledError)
  })

  it('has a tolerance of nothing for a record of zeros', () => {
    expect(differenceOf([0, 1e-9], new Float32Array(2))).toMatchObject({ tolerance: 0, error: expect.closeTo(1e-9, 12) })
  })
})

// Recorded by PyTorch; the suite passes without ../shared, and says what was skipped.
describe.skipIf(!existsSync(shared))('recorded values of ../shared', () => {
  const goldens = join(shared, 'goldens')
  it.each([
    ['llama', join(goldens, 'llama'), 26, undefined],
    ['llama-tied-headdim', join(goldens, 'llama-tied-headdim'), 26, undefined],
    ['llama3-rope', join(goldens, 'llama3-rope'), 26, undefined],
    ['gpt2', join(goldens, 'gpt2'), 26, undefined],
    ['stories260K', join(shared, 'models', 'stories260K', 'stories260K.bin'), 12, undefined],
    ['transformer-lens', join(goldens, 'gpt2'), 120, 'gpt2.safetensors'],
    ['transformer-lens', join(goldens, 'llama'), 120, 'llama.safetensors'],
  ])('%s', async (folder, source, atLeast, file) => {
    await using model = await load(source, { threads: 2 })
    const result = await validate(model, join(goldens, folder), file ? { file } : {})
    expect(result.checks.filter((c) => c.status === 'fail')).toEqual([])
    expect(result.passed).toBeGreaterThanOrEqual(atLeast)
    const reasons = result.checks.filter((c) => c.status === 'not checked').map((c) => c.note)
    for (const reason of reasons) expect(reason).toMatch(/There is no site|does not exist in this model/)
  })
})
