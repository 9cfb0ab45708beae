import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { decodeSafetensors } from '../../models/formats/index.ts'
import { load } from '../../run/index.ts'
import { cli, writeModel, writeTokenizer } from '../testing.ts'

let home: string
const at = (name: string) => join(home, name)

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'actlens-cli-capture-'))
  await writeModel(at('words'))
  await writeTokenizer(at('words'))
  // The tokenizer of words knows no others; what is replaced by must be one.
  const tokenizer = await readFile(at('words/tokenizer.json'), 'utf8')
  await writeFile(at('words/tokenizer.json'), tokenizer.replace('"w60"', '"\uFFFD"'))
  await writeFile(at('texts.jsonl'), '{"story":"w5 w6 w7"}\n\n{"story":""}\n{"story":"w8 w9"}\n')
  await writeFile(at('bad.txt'), Buffer.concat([Buffer.from('w1 w2\nw2 '), Buffer.from([0xff]), Buffer.from(' w3\n')]))
  await writeFile(at('nul.txt'), 'w1\0 w2\n')
  await writeFile(at('long.txt'), `${'w1 w2 w3 w4 '.repeat(20_000)}\n`)
  await writeFile(at('x.parquet'), 'PAR1')
})
afterAll(() => rm(home, { recursive: true, force: true }))

describe('capture', () => {
  it('writes shards and a manifest whose tensors are those of the library', async () => {
    const out = at('out')
    const ran = await cli([
      'capture',
      at('words'),
      '--data',
      at('texts.jsonl'),
      '--field',
      'story',
      '--sites',
      'resid_post.*,z.0',
      '--out',
      out,
      '--json',
    ])
    expect([ran.code, ran.stderr]).toEqual([0, '2 empty documents were skipped.\n'])
    expect(JSON.parse(ran.stdout)).toMatchObject({
      tokens: 5,
      captured: 5,
      documents: 2,
      skipped: 2,
      shards: ['activations-00000.safetensors'],
    })
    const manifest = JSON.parse(await readFile(join(out, 'manifest.json'), 'utf8'))
    expect(manifest).toMatchObject({
      format: 'actlens-activations/1',
      complete: true,
      tokens: 5,
      data: { source: 'jsonl', field: 'story' },
    })
    const { tensors } = decodeSafetensors(await readFile(join(out, 'activations-00000.safetensors')))
    expect(Object.fromEntries(Object.entries(tensors).map(([n, t]) => [n, t.shape]))).toEqual({
      'resid_post.0': [5, 32],
      'resid_post.1': [5, 32],
      'z.0': [5, 4, 16],
      tokens: [5],
      document: [5],
      position: [5],
      column: [5],
    })
    expect(tensors.document?.data).toEqual(Int32Array.of(0, 0, 0, 3, 3))
    const model = await load(at('words'), { threads: 1 })
    const { taps } = await model.run(['w5 w6 w7', 'w8 w9'], { taps: ['resid_post.1'] })
    const want = [...(taps['resid_post.1']?.row(0).data ?? []), ...(taps['resid_post.1']?.row(1).data ?? [])]
    for (const [i, v] of want.entries()) expect(tensors['resid_post.1']?.data[i]).toBeCloseTo(v, 4)
    const again = await cli([
      'capture',
      at('words'),
      '--data',
      at('texts.jsonl'),
      '--field',
      'story',
      '--sites',
      'resid_post.*,z.0',
      '--out',
      out,
    ])
    expect([again.code, again.stderr]).toEqual([2, expect.stringMatching(/exists and is not empty: resume it/)])
    const resumed = await cli([
      'capture',
      at('words'),
      ...['--data', at('texts.jsonl'), '--field', 'story', '--sites', 'resid_post.*,z.0', '--out', out, '--resume', '--json'],
    ])
    expect(JSON.parse(resumed.stdout)).toMatchObject({ tokens: 5, captured: 0 })
  })

  it('takes texts, ids, element types, places and edits', async () => {
    const out = at('ends')
    await writeFile(at('zero.json'), JSON.stringify([{ op: 'zero', site: 'resid_post.0' }]))
    const ran = await cli([
      ...['capture', at('words'), '--text', 'w5 w6', '--text', 'ids:7,8,9', '--sites', 'resid_post.0', '--out', out],
      ...['--where', '{"positions": -1}', '--dtype', 'int8', '--edits', at('zero.json')],
    ])
    expect(ran.code).toBe(0)
    expect(ran.stdout).toMatch(/resid_post\.0 +\[2, 32\] +int8\n2 positions of 2 documents in 1 shards/)
    const { tensors } = decodeSafetensors(await readFile(join(out, 'activations-00000.safetensors')))
    expect(tensors.tokens?.data).toEqual(Int32Array.of(6, 9))
    expect(tensors['resid_post.0']?.data.every((v) => v === 0)).toBe(true)
    expect(tensors['resid_post.0.scale']?.data).toEqual(Float32Array.of(0, 0))
  })

  it('cuts a long line into rows of the context, and replaces what is no text where it is told to', async () => {
    const long = await cli([
      'capture',
      at('words'),
      '--data',
      at('long.txt'),
      '--sites',
      'resid_post.0',
      '--out',
      at('long'),
      '--max-tokens',
      '200',
      '--json',
    ])
    expect(JSON.parse(long.stdout)).toMatchObject({ tokens: 200, documents: 1 })
    const { tensors } = decodeSafetensors(await readFile(join(at('long'), 'activations-00000.safetensors')))
    expect([...(tensors.position?.data ?? [])]).toEqual(Array.from({ length: 200 }, (_, i) => i))
    expect([...(tensors.column?.data ?? [])]).toEqual(Array.from({ length: 200 }, (_, i) => i % 64))
    const ran = await cli([
      'capture',
      at('words'),
      '--data',
      at('bad.txt'),
      '--sites',
      'resid_post.0',
      '--out',
      at('bad'),
      '--invalid',
      'replace',
    ])
    expect([ran.code, ran.stderr]).toEqual([0, expect.stringMatching(/In 1 documents, characters that are none were replaced/)])
  })

  it.each<[string, number, RegExp]>([
    ['--sites resid_post.0', 2, /--out/],
    ['--sites resid_post.0 --out @new', 2, /give --text or --data/],
    ['--text w1 --data @texts.jsonl --sites resid_post.0 --out @new', 2, /cannot be used with/],
    ['--text w1 --field x --sites resid_post.0 --out @new', 2, /--field says how to read --data/],
    ['--text w1 --sites attn_probs.0 --out @new', 2, /key axis/],
    ['--text w1 --sites resid_pots.0 --out @new', 2, /did you mean/],
    ['--text w1 --sites resid_post.0 --out @new --dtype f64', 2, /f32, f16, bf16, int8/],
    ['--text w1 --sites resid_post.0 --out @new --where {', 2, /must be JSON/],
    ['--text w1 --sites resid_post.0 --out @new --where {"place":1}', 2, /unknown key 'place'/],
    ['--text w1 --sites resid_post.0 --out @new --max-tokens 0', 2, /whole number from 1/],
    ['--data @lost.txt --sites resid_post.0 --out @new', 1, /does not exist/],
    ['--data @bad.txt --sites resid_post.0 --out @new', 1, /bad\.txt, line 2 holds bytes that are no UTF-8/],
    ['--data @nul.txt --sites resid_post.0 --out @new', 1, /line 1 holds the character NUL/],
    ['--data @x.parquet --sites resid_post.0 --out @new', 1, /cannot be read as Parquet/],
    ['--data @texts.jsonl --sites resid_post.0 --out @new', 2, /line 1 has no text.*Its fields are story/],
    ['--text w1 --sites resid_post.0 --out @texts.jsonl', 2, /is a file; give the name of a folder/],
  ])('refuses %s', async (line, code, says) => {
    const before = (await readdir(home)).sort()
    const ran = await cli(['capture', at('words'), ...line.split(' ').map((w) => w.replace(/^@/, `${home}/`))])
    expect(ran.stderr).toMatch(says)
    expect([ran.code, ran.stdout]).toEqual([code, ''])
    expect(ran.stderr.trimEnd().split('\n')).toHaveLength(1)
    expect((await readdir(home)).sort()).toEqual(before)
  })

  it('keeps finished shards when interrupted', async () => {
    const controller = new AbortController()
    setTimeout(() => controller.abort(), 400)
    const argv = [
      'capture',
      at('words'),
      '--data',
      at('long.txt'),
      '--sites',
      'resid_post.*',
      '--out',
      at('cut'),
      '--batch-tokens',
      '64',
      '--shard-tokens',
      '64',
    ]
    const ran = await cli(argv, { signal: controller.signal })
    expect([ran.code, ran.stderr]).toEqual([130, expect.stringMatching(/what was finished is kept/)])
    const names = await readdir(at('cut')).catch(() => [])
    if (names.length > 0) {
      const { shards, complete } = JSON.parse(await readFile(join(at('cut'), 'manifest.json'), 'utf8'))
      expect(complete).toBe(false)
      expect(names.filter((n) => n.endsWith('.safetensors')).sort()).toEqual(shards.map((s: { file: string }) => s.file))
    }
  })
})
