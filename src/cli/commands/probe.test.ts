import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { decodeSafetensors } from '../../models/formats/index.ts'
import { loadProbes } from '../../probe/index.ts'
import { cli, writeModel, writeTokenizer } from '../testing.ts'

let home: string
const at = (name: string) => join(home, name)

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'actlens-cli-probe-'))
  await writeModel(at('words'))
  await writeTokenizer(at('words'))
  // The label is whether the last of three words is one of five or one of five others.
  const rows = Array.from({ length: 120 }, (_, i) => [`w${(i * 7) % 61} w${(i * 11) % 61} w${1 + (i % 10)}`, i % 10 < 5 ? 'low' : 'high'])
  const lines = rows.map(([text, label], i) => `"${text}",${label},s${i % 40}\n`).join('')
  await writeFile(at('data.csv'), `text,label,source\n${lines}`)
  await writeFile(at('data.csv.gz'), gzipSync(`sentence,kind,source\n${lines}`))
  await writeFile(at('one.csv'), `text,label\n${rows.map(([text]) => `${text},same\n`).join('')}`)
  await writeFile(at('broken.csv'), 'text,label\n"w1,a\n')
})
afterAll(() => rm(home, { recursive: true, force: true }))

describe('probe', () => {
  it('judges probes of each table on all', async () => {
    await writeFile(at('other.csv'), await readFile(at('data.csv')))
    const out = at('transfer.safetensors')
    const more = ['--site', 'embeddings', '--transfer', at('other.csv'), '--no-controls', '--c', '1']
    const ran = await cli(['probe', at('words'), '--data', at('data.csv'), ...more, '--out', out, '--json'])
    expect(ran.code).toBe(0)
    const { sets, sites } = JSON.parse(ran.stdout)
    expect(sets).toEqual(['data', 'other'])
    // The sets are equal, so what was learned on one fits the other as well as itself.
    expect(sites[0].accuracy[0][1]).toBeCloseTo(sites[0].accuracy[1][0], 6)
    expect(sites[0].accuracy[0][1]).toBeGreaterThanOrEqual(sites[0].accuracy[0][0])
    expect(decodeSafetensors(await readFile(out)).tensors['embeddings.accuracy']?.shape).toEqual([2, 2])
    const twice = await cli(['probe', at('words'), '--data', at('data.csv'), '--site', 'embeddings', '--transfer', at('data.csv')])
    expect([twice.code, twice.stderr]).toEqual([2, expect.stringMatching(/Two tables are called 'data'/)])
    await rm(out)
    await rm(at('other.csv'))
  })

  it('tells accuracy, AUROC, intervals and controls for each site, and writes the probes', async () => {
    const out = at('probes.safetensors')
    const ran = await cli(['probe', at('words'), '--data', at('data.csv'), '--site', 'embeddings,resid_post.*', '--out', out, '--json'])
    expect(ran.code).toBe(0)
    const result = JSON.parse(ran.stdout)
    expect(result).toMatchObject({ kind: 'logistic', examples: 120, classes: ['high', 'low'], text: 'text', label: 'label', folds: 5, out })
    expect(result.sites.map((s: { site: string }) => s.site)).toEqual(['embeddings', 'resid_post.0', 'resid_post.1'])
    for (const site of result.sites) {
      expect(site.accuracy).toBeGreaterThanOrEqual(site.ci.accuracy[0])
      expect(site.accuracy).toBeLessThanOrEqual(site.ci.accuracy[1])
      expect(site.auroc).toBeGreaterThan(0.5)
      expect(Object.keys(site.controls)).toEqual(['shuffledLabels', 'randomFeatures', 'tokenIdentity'])
      expect(site.selectivity).toBeCloseTo(site.accuracy - site.controls.shuffledLabels, 10)
      expect(site.C).toBeGreaterThan(0)
    }
    // The last token decides and comes in several texts: both know it.
    expect(result.sites[0].accuracy).toBeGreaterThan(0.7)
    expect(result.sites[0].controls.tokenIdentity).toBeGreaterThan(0.8)
    const probes = await loadProbes(out)
    expect(probes.map((p) => p.site)).toEqual(['embeddings', 'resid_post.0', 'resid_post.1'])
    expect(decodeSafetensors(await readFile(out)).tensors['resid_post.1.weights']?.shape).toEqual([1, 32])
  })

  it('reads compressed tables and columns by name, groups by source, and prints a table', async () => {
    const argv = [
      'probe',
      at('words'),
      '--data',
      at('data.csv.gz'),
      '--label',
      'kind',
      '--group',
      'source',
      '--site',
      'resid_post.1',
      '--kind',
      'lda',
    ]
    const ran = await cli([...argv, '--position', 'mean', '--no-controls', '--max-examples', '100'])
    expect(ran.code).toBe(0)
    expect(ran.stdout).toMatch(/lda at position mean: 100 examples of 40 texts, 2 classes, the commonest 5\d\.\d %; 5 folds/)
    expect(ran.stdout).toMatch(/^resid_post\.1 +0\.\d{3} \(0\.\d{3} to [01]\.\d{3}\)/m)
  })

  it.each<[string, number, RegExp]>([
    ['--data @data.csv', 2, /--site/],
    ['--data @lost.csv --site resid_post.0', 1, /does not exist/],
    ['--data @data.csv --site resid_post.0 --text body', 2, /no column 'body'.*Its columns are text, label, source/],
    ['--data @data.csv.gz --site resid_post.0', 2, /no column for the label under a usual name/],
    ['--data @one.csv --site resid_post.0', 2, /All 120 labels are 'same'.*at least two classes/],
    ['--data @broken.csv --site resid_post.0', 1, /line 2: a quote is opened and never closed/],
    ['--data @data.csv --site resid_post.0 --kind knn', 2, /no kind of probe 'knn'/],
    ['--data @data.csv --site resid_post.0 --kind regression', 2, /is no number/],
    ['--data @data.csv --site resid_post.0 --pca 40', 2, /so there are no 40; ask for fewer/],
    ['--data @data.csv --site attn_probs.0', 2, /key axis/],
    ['--data @data.csv --site resid_post.0 --position 3', 2, /has no position 3/],
    ['--data @data.csv --site resid_post.0 --out @no/x.safetensors', 2, /folder .* does not exist/],
    ['--data @data.csv --site resid_post.0 --max-examples 7 --folds 9', 2, /7 different source texts, too few for 9 folds/],
  ])('refuses %s', async (line, code, says) => {
    const before = (await readdir(home)).sort()
    const ran = await cli(['probe', at('words'), ...line.split(' ').map((w) => w.replace(/^@/, `${home}/`))])
    expect(ran.stderr).toMatch(says)
    expect([ran.code, ran.stdout]).toEqual([code, ''])
    expect(ran.stderr.trimEnd().split('\n')).toHaveLength(1)
    expect((await readdir(home)).sort()).toEqual(before)
  })
})
