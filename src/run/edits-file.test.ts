import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { EditError, FormatError, SiteError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { f32ToBf16, f32ToF16, writeSafetensors } from '../models/formats/index.ts'
import { add, clamp, rotate } from '../sites/edits.ts'
import { describeEdits, readEditsFile, withEditsFile } from './edits-file.ts'
import { tinyModel } from './testing.ts'

let home: string
const values = Float32Array.from({ length: 32 }, (_, i) => (i - 16) / 8)
const path = () => join(home, 'edits.json')
const read = async (value: unknown) => {
  await writeFile(path(), typeof value === 'string' ? value : JSON.stringify(value))
  return readEditsFile(path())
}
const edit = (vector: unknown, more: object = {}) => ({ op: 'add', site: 'resid_post.1', params: { vector }, ...more })

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'actlens-edits-'))
  await mkdir(join(home, 'deep'))
  await writeSafetensors(join(home, 'deep', 'one.safetensors'), { v: { dtype: 'float32', shape: [32], data: values } })
  await writeSafetensors(join(home, 'many.safetensors'), {
    half: { dtype: 'float16', shape: [32], data: f32ToF16(values) },
    brain: { dtype: 'bfloat16', shape: [32], data: f32ToBf16(values) },
    ints: { dtype: 'int64', shape: [32], data: BigInt64Array.from(values, (v) => BigInt(Math.round(v))) },
    record: { dtype: 'float32', shape: [1, 2, 32], data: new Float32Array(64).fill(0.25) },
    nan: { dtype: 'float32', shape: [32], data: new Float32Array(32).fill(Number.NaN) },
  })
})
afterAll(() => rm(home, { recursive: true, force: true }))

describe('readEditsFile', () => {
  it('reads numbers, nested lists and tensors of files, in the types that a file may have', async () => {
    const tensor = (name: string) => ({ file: 'many.safetensors', tensor: name })
    const edits = await read([
      edit([1, 2], { where: { positions: { from: 1, to: -1 }, phase: 'prompt' } }),
      edit({ file: 'deep/one.safetensors' }),
      edit({ file: join(home, 'deep', 'one.safetensors'), tensor: 'v' }),
      ...['half', 'brain', 'ints'].map((name) => edit(tensor(name))),
      { op: 'replace', site: 'mlp_out.0', params: { value: tensor('record') } },
      { op: 'zero', site: 'mlp_out.0' },
      { op: 'zero', site: 'mlp_out.0', where: { when: { site: 'resid_pre.0', vector: tensor('half'), above: 1 } } },
    ])
    const array = (i: number, name = 'vector') => edits[i]?.params?.[name] as NDArray<Float32Array>
    expect(edits[0]).toEqual(edit([1, 2], { where: { positions: { from: 1, to: -1 }, phase: 'prompt' } }))
    for (const i of [1, 2, 3, 4]) expect(array(i)).toEqual({ dtype: 'float32', shape: [32], data: values })
    expect(array(5).data).toEqual(values.map((v) => Math.round(v) + 0))
    expect(array(6, 'value').shape).toEqual([1, 2, 32])
    expect(edits[7]).toEqual({ op: 'zero', site: 'mlp_out.0' })
    expect(edits[8]?.where?.when?.vector).toEqual(values)
  })

  it.each<[string, unknown, RegExp]>([
    ['an object', {}, /must hold a JSON array/],
    ['a number among edits', [edit([1]), 5], /edit 1: It must be an object/],
    ['an unknown op', [{ ...edit([1]), op: 'rotat' }], /edit 0: There is no edit op 'rotat'; did you mean 'rotate'/],
    ['a function', [{ op: 'function', site: 'logits', apply: 1 }], /There is no edit op 'function'/],
    ['no site', [{ op: 'zero' }], /needs a site/],
    ['an unknown key', [edit([1], { when: 1 })], /unknown key 'when'/],
    ['an unknown parameter', [edit([1], { params: { vector: [1], size: 2 } })], /unknown parameter 'size'/],
    ['a missing parameter', [edit([1], { params: {} })], /needs the parameter 'vector'/],
    ['an unknown key of where', [edit([1], { where: { position: 1 } })], /unknown key 'position'/],
    ['a text for a vector', [edit('up')], /must be numbers or \{ "file", "tensor" \}, not "up"/],
    ['a null', [edit(null)], /not null/],
    ['ragged lists', [edit([[1, 2], [3]])], /ragged/],
    ['an unknown key of a tensor', [edit({ file: 'deep/one.safetensors', name: 'v' })], /unknown key 'name'/],
    ['a tensor without a file', [edit({ tensor: 'v' })], /must name its "file"/],
    ['one of many tensors unnamed', [edit({ file: 'many.safetensors' })], /holds 5 tensors .*"tensor" must say which/],
    ['numbers that are none', [edit([1]), edit({ file: 'many.safetensors', tensor: 'nan' })], /edit 1: .*NaN/],
  ])('refuses %s, naming file and index', async (_, value, says) => {
    const failure = await read(value).catch((e: unknown) => e)
    expect(failure).toBeInstanceOf(EditError)
    expect((failure as Error).message).toMatch(says)
    expect((failure as Error).message).toContain(path())
  })

  it.each<[string, unknown, RegExp]>([
    ['text that is no JSON', '[{ "op": NaN }]', /edits\.json is not valid JSON/],
    [
      'a tensor that is not in the file',
      [edit({ file: 'many.safetensors', tensor: 'haf' })],
      /edit 0: .*has no tensor haf; did you mean half/,
    ],
    ['a file that is not there', [edit({ file: 'none.safetensors' })], /edits\.json, edit 0: There is no file .*none\.safetensors/],
  ])('cannot read %s', async (_, value, says) => {
    const failure = await read(value).catch((e: unknown) => e)
    expect(failure).toBeInstanceOf(FormatError)
    expect((failure as Error).message).toMatch(says)
  })
})

describe('withEditsFile', () => {
  it('gives the model that the constructors give', async () => {
    await using model = await tinyModel()
    const edits = await read([
      edit({ file: 'many.safetensors', tensor: 'half' }, {}),
      { op: 'clamp', site: 'mlp_out.*', params: { max: 0.1 } },
    ])
    const ours = await withEditsFile(model, { path: path(), edits }).run({ ids: [5, 6, 7] })
    const want = await model.with(add('resid_post.1', values), clamp('mlp_out.*', { max: 0.1 })).run({ ids: [5, 6, 7] })
    expect(ours.logits.data).toEqual(want.logits.data)
  })

  it('names the file and the edit that does not fit', async () => {
    await using model = await tinyModel()
    const put = async (...list: unknown[]) => withEditsFile(model, { path: path(), edits: await read(list) })
    await expect(put(edit(1), edit([1, 2, 3]))).rejects.toThrow(/edits\.json, edit 1: .*shape \[3\].*32 wide/)
    await expect(put(edit(1, { site: 'resid_post.9' }))).rejects.toThrow(SiteError)
  })
})

describe('describeEdits', () => {
  it('keeps short numbers and tells long arrays by shape and hash', () => {
    const told = describeEdits([
      rotate(
        'q.0',
        values,
        values.map((v) => -v),
        0.5,
      ),
      add('z.0', 2, { where: { rows: [1] } }),
    ]) as {
      params: Record<string, { sha256?: string }>
    }[]
    expect(told[0]).toMatchObject({ op: 'rotate', params: { from: { shape: [32] }, angle: 0.5 } })
    expect(told[0]?.params.from?.sha256).toMatch(/^[0-9a-f]{64}$/)
    expect(told[0]?.params.from?.sha256).not.toBe(told[0]?.params.to?.sha256)
    expect(told[1]).toEqual({ op: 'add', site: 'z.0', params: { vector: 2 }, where: { rows: [1] } })
  })
})
