import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { linearCka, type Points } from '../../explore/index.ts'
import { decodeSafetensors } from '../../models/formats/index.ts'
import { load, type Model } from '../../run/index.ts'
import { cli, float32, writeModel, writeTokenizer } from '../testing.ts'

let home: string
let model: Model
const at = (name: string) => join(home, name)
/** A word a place, so that all texts are different. */
const texts = Array.from({ length: 8 }, (_, i) => Array.from({ length: 5 + i }, (_, j) => `w${(i * 13 + j * j * 7 + 5) % 60}`).join(' '))

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'actlens-cli-similarity-'))
  await writeModel(at('words'))
  await writeTokenizer(at('words'))
  const data = Array.from({ length: 32 * 32 }, (_, i) => Math.sin(i) / 4)
  await writeModel(at('other'), undefined, {
    'model.layers.1.self_attn.o_proj.weight': float32([...data, ...data.map((v) => -v)].slice(0, 32 * 64), [32, 64]),
  })
  await writeTokenizer(at('other'))
  await writeFile(at('texts.csv'), `text\n${texts.join('\n')}\n`)
  model = await load(at('words'), { threads: 1 })
})
afterAll(async () => {
  await model.dispose()
  await rm(home, { recursive: true, force: true })
})

async function points(of: Model, site: string): Promise<Points> {
  const parts: number[] = []
  for (const text of texts) parts.push(...((await of.run(text, { taps: [site], logits: false })).taps[site]?.data ?? []))
  return { dtype: 'float32', shape: [parts.length / 32, 32], data: Float32Array.from(parts) }
}

const file = async (name: string) => decodeSafetensors(await readFile(at(name)))

describe('similarity', () => {
  it('compares layers, and writes what it shows', async () => {
    const ran = await cli(['similarity', at('words'), '--data', at('texts.csv'), '--out', at('s.safetensors'), '--json', '--quiet'])
    expect([ran.code, ran.stderr]).toEqual([0, ''])
    const { rows, columns, values, places } = JSON.parse(ran.stdout)
    expect([rows, columns, places]).toEqual([['resid_post.0', 'resid_post.1'], ['resid_post.0', 'resid_post.1'], 68])
    const want = await linearCka(await points(model, 'resid_post.0'), await points(model, 'resid_post.1'))
    expect(values[0][1]).toBeCloseTo(want, 5)
    expect([values[0][0], values[1][1]].map((v: number) => Math.round(v * 1e6) / 1e6)).toEqual([1, 1])
    const { tensors, metadata } = await file('s.safetensors')
    expect(Array.from(tensors.similarity?.data as Float64Array)).toEqual(values.flat())
    expect(JSON.parse(metadata?.actlens as string)).toMatchObject({ format: 'actlens-similarity-1', measure: 'cka', rows })
  })

  it('compares models and other sites, at chosen places', async () => {
    const other = await load(at('other'), { threads: 1 })
    const want = await linearCka(await points(model, 'resid_post.1'), await points(other, 'resid_post.1'))
    await other.dispose()
    const argv = ['similarity', at('words'), '--data', at('texts.csv'), '--sites', 'resid_post.1', '--with', at('other')]
    const ran = await cli([...argv, '--json', '--quiet'])
    expect(JSON.parse(ran.stdout).values[0][0]).toBeCloseTo(want, 5)
    expect(want).toBeLessThan(0.999)
    const ends = await cli([...argv, '--with-sites', 'resid_post.*', '--where', '{"positions":-1}', '--measure', 'rsa'])
    expect(ends.stdout).toMatch(/^rsa +resid_post\.0 +resid_post\.1\nresid_post\.1 +\d\.\d+ +\d\.\d+\n8 places\.\n$/)
  })

  it('measures geometry and draws maps', async () => {
    const ran = await cli(['similarity', at('words'), '--data', at('texts.csv'), '--geometry', '--out', at('g.safetensors'), '--quiet'])
    expect([ran.code, ran.stdout]).toEqual([
      0,
      expect.stringMatching(/^site +width +two-nn +likelihood +participation +effective rank +mean cosine\nresid_post\.0 +32 /),
    ])
    expect((await file('g.safetensors')).tensors['geometry.effectiveRank']?.shape).toEqual([2])
    const map = ['similarity', at('words'), '--data', at('texts.csv'), '--sites', 'resid_post.1', '--quiet', '--out']
    expect((await cli([...map, at('m.safetensors'), '--map', 'pca'])).stdout).toMatch(/resid_post\.1 +\d+\.\d % +\d+\.\d %/)
    expect((await cli([...map, at('u.safetensors'), '--map', 'umap', '--seed', '3'])).code).toBe(0)
    const { tensors } = await file('u.safetensors')
    expect([tensors['map.resid_post.1']?.shape, tensors.tokens?.shape]).toEqual([[68, 2], [68]])
  })

  it.each<[string, RegExp]>([
    ['--geometry --measure cka --data @texts.csv', /cannot be used with/],
    ['--map pca --data @texts.csv', /give --out/],
    ['--seed 3 --data @texts.csv', /--seed is for --map umap/],
    ['--measure cca --data @texts.csv', /cka, cka-unbiased, svcca/],
    ['', /give --text or --data/],
  ])('refuses %s', async (line, says) => {
    const ran = await cli([
      'similarity',
      at('words'),
      ...line
        .split(' ')
        .filter(Boolean)
        .map((w) => w.replace(/^@/, `${home}/`)),
    ])
    expect([ran.code, ran.stdout, ran.stderr]).toEqual([2, '', expect.stringMatching(says)])
  })
})

describe('statistics', () => {
  it('are those of the activations', async () => {
    const ran = await cli([
      'statistics',
      at('words'),
      '--data',
      at('texts.csv'),
      '--sites',
      'resid_post.1',
      '--covariance',
      '--top',
      'resid_post.1:3,5',
      '--keep',
      '2',
      '--out',
      at('st.safetensors'),
      '--json',
      '--quiet',
    ])
    expect([ran.code, ran.stderr]).toEqual([0, ''])
    const { shape, data } = await points(model, 'resid_post.1')
    const rows = shape[0] as number
    const column = (j: number) => Array.from({ length: rows }, (_, i) => data[i * 32 + j] as number)
    const average = (values: number[]) => values.reduce((s, v) => s + v, 0) / values.length
    const { tensors } = await file('st.safetensors')
    for (const j of [0, 7, 31]) {
      const m = average(column(j))
      expect(tensors['mean.resid_post.1']?.data[j]).toBeCloseTo(m, 5)
      expect(tensors['variance.resid_post.1']?.data[j]).toBeCloseTo(average(column(j).map((v) => (v - m) ** 2)), 5)
      expect(tensors['covariance.resid_post.1']?.data[j * 32 + j]).toBeCloseTo(average(column(j).map((v) => (v - m) ** 2)), 5)
    }
    const [site] = JSON.parse(ran.stdout).sites
    expect(site).toMatchObject({ site: 'resid_post.1', count: rows, notFinite: 0 })
    expect(site.values.quantiles['1']).toBeCloseTo(Math.max(...data), 4)
    expect(site.top['3']).toHaveLength(2)
    expect(site.top['3'][0].value).toBeCloseTo(Math.max(...column(3)), 4)
    const text = texts[site.top['3'][0].document]?.split(' ') as string[]
    expect(site.top['3'][0].pieces[site.top['3'][0].at]).toBe(text[site.top['3'][0].position])
    const table = await cli([
      'statistics',
      at('words'),
      '--data',
      at('texts.csv'),
      '--sites',
      'resid_post.1',
      '--top',
      'resid_post.1:3',
      '--quiet',
    ])
    expect(table.stdout).toMatch(/resid_post\.1, coordinate 3\nvalue +document +position +text\n *-?[\d.]+ +\d+ +\d+ +".*«w\d+».*"/)
  })

  it.each<[string, RegExp]>([
    ['--data @texts.csv --sites resid_post.1 --covariance', /give --out/],
    ['--data @texts.csv --sites resid_post.1 --keep 3', /give --top/],
    ['--data @texts.csv --sites resid_post.1 --top resid_post.1', /SITE:N,N/],
    ['--data @texts.csv --sites resid_post.1 --top resid_post.0:1', /not among the sites/],
    ['--data @texts.csv --sites resid_post.1 --top resid_post.1:32', /coordinates 0 to 31/],
  ])('refuses %s', async (line, says) => {
    const ran = await cli(['statistics', at('words'), ...line.split(' ').map((w) => w.replace(/^@/, `${home}/`))])
    expect([ran.code, ran.stdout, ran.stderr]).toEqual([2, '', expect.stringMatching(says)])
  })
})
