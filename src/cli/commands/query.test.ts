import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { saveSae } from '../../decompose/sae/load.ts'
import { saeWeights } from '../../models/sae/weights.ts'
import { load } from '../../run/index.ts'
import { cli, float32, writeModel, writeTokenizer } from '../testing.ts'

let home: string
const at = (name: string) => join(home, name)
const texts = ['w5 w6 w7', 'w8 w9']

/** Latents that are the coordinates of the site, then their negatives. */
const W_enc = Array.from({ length: 32 * 64 }, (_, i) => (i % 64 === Math.floor(i / 64) ? 1 : i % 64 === Math.floor(i / 64) + 32 ? -1 : 0))
const W_dec = Array.from({ length: 64 * 32 }, (_, i) => W_enc[(i % 32) * 64 + Math.floor(i / 32)] as number)

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'actlens-cli-query-'))
  await writeModel(at('words'))
  await writeTokenizer(at('words'))
  await writeFile(at('texts.txt'), `${texts.join('\n')}\n`)
  const tensors = {
    W_enc: float32(W_enc, [32, 64]),
    W_dec: float32(W_dec, [64, 32]),
    b_enc: float32(new Array(64).fill(-1)),
    b_dec: float32(new Array(32).fill(0)),
  } as unknown as Parameters<typeof saeWeights>[0]['tensors']
  await saveSae(at('sae'), saeWeights({ kind: 'standard', subtractsBias: false, tensors, hook: 'blocks.1.hook_resid_post' }))
})
afterAll(() => rm(home, { recursive: true, force: true }))

it('keeps features of an autoencoder and answers questions about them', async () => {
  const out = at('features.parquet')
  const ran = await cli(['capture', at('words'), '--data', at('texts.txt'), '--sae', at('sae'), '--out', out, '--json', '--quiet'])
  expect([ran.code, ran.stderr]).toEqual([0, ''])
  const model = await load(at('words'), { threads: 1 })
  const { taps } = await model.run(texts, { taps: ['resid_post.1'], logits: false })
  const rows = [0, 1].map((r) => taps['resid_post.1']?.row(r).data as Float32Array)
  await model.dispose()
  const active = rows.map((r) => r.filter((v) => Math.abs(v) > 1).length)
  expect(JSON.parse(ran.stdout)).toMatchObject({
    site: 'resid_post.1',
    rows: (active[0] as number) + (active[1] as number),
    places: 5,
    features: 64,
  })
  const asked = await cli([
    'query',
    'SELECT document, count(*) AS n, max(value) AS top, any_value(piece) AS p FROM features GROUP BY document ORDER BY document',
    out,
    '--json',
  ])
  const found = JSON.parse(asked.stdout)
  expect(found.columns).toEqual(['document', 'n', 'top', 'p'])
  expect(found.rows.map((r: { n: number }) => r.n)).toEqual(active)
  for (const [d, r] of rows.entries()) expect(found.rows[d].top).toBeCloseTo(Math.max(...r.map(Math.abs)) - 1, 4)
  expect(found.rows[0].p).toMatch(/^w[567]$/)
  const shown = await cli(['query', 'SELECT count(*) AS n, 0.123456 AS x, NULL AS nothing FROM features', out])
  expect(shown.stdout).toMatch(/^ *n +x +nothing\n\d+ +0\.1235\n$/)
})

it.each<[string[], number, RegExp]>([
  [['query', 'SELECT lost FROM features', '@features.parquet'], 2, /cannot be answered.*lost/],
  [['query', 'SELECT 1', '@gone.parquet'], 1, /gone\.parquet does not exist/],
  [['query', 'SELECT 1'], 2, /FILE/],
  [['capture', '@words', '--text', 'w1', '--out', '@x'], 2, /--sites.*or --sae/],
  [['capture', '@words', '--text', 'w1', '--sae', '@sae', '--out', '@x'], 2, /ends in \.parquet/],
  [['capture', '@words', '--text', 'w1', '--sae', '@sae', '--out', '@x.parquet', '--dtype', 'f16'], 2, /cannot be used with/],
  [
    ['capture', '@words', '--text', 'w1', '--sites', 'resid_post.0', '--out', '@x', '--threshold', '1'],
    2,
    /--threshold is for the features/,
  ],
  [
    ['capture', '@words', '--text', 'w1', '--sae', '@sae', '--sites', 'mlp_act.0', '--out', '@x.parquet'],
    1,
    /belongs to another site or model/,
  ],
])('refuses %j', async (argv, code, says) => {
  const ran = await cli(argv.map((w) => w.replace(/^@/, `${home}/`)))
  expect([ran.code, ran.stdout, ran.stderr]).toEqual([code, '', expect.stringMatching(says)])
})
