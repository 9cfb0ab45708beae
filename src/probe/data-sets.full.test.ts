/** Probes on real data: sentiment of SST-2 with its controls, truth across data sets of "The Geometry of Truth" (Marks & Tegmark 2023). */
import { dirname } from 'node:path'
import { describe, expect, it } from 'vitest'
import { fetchedFile, sharedFile } from '../models/text/test-files.ts'
import { load } from '../run/index.ts'
import { columnOf, probe, readTable, transferMatrix } from './index.ts'

const smollm = fetchedFile('smollm2-135m', 'SmolLM2-135M-Instruct.Q4_1.gguf')
const sst2 = sharedFile('data', 'sst2', 'train.tsv')
const truth = (name: string) => sharedFile('data', 'geometry-of-truth', 'datasets', `${name}.csv`) as string

describe.skipIf(!smollm || !sst2)('SmolLM2-135M', () => {
  it('tells the sentiment of SST-2 beyond its controls', { timeout: 900_000 }, async () => {
    await using model = await load(dirname(smollm as string), { threads: 2 })
    const table = await readTable(sst2 as string)
    const texts = columnOf(table, undefined, ['sentence', 'text'], 'text').values.slice(0, 400)
    const labels = columnOf(table, undefined, ['label'], 'label').values.slice(0, 400)
    const result = await probe(model, { texts, labels, site: ['resid_post.0', 'resid_post.18'], position: 'mean', C: 0.01, samples: 200 })
    const late = result.sites[1]!
    console.info(result.sites.map((s) => [s.site, s.scores.accuracy!.value, s.controls]))
    expect(late.scores.accuracy!.low).toBeGreaterThan(0.7)
    expect(late.selectivity).toBeGreaterThan(0.2)
    expect(late.scores.accuracy!.value).toBeGreaterThan(late.controls.randomFeatures as number)
    expect(Math.abs((late.controls.randomFeatures as number) - 0.5)).toBeLessThan(0.12)
  })

  it('probes of truth carry over from one kind of statement to another, or not, as the table says', { timeout: 900_000 }, async () => {
    await using model = await load(dirname(smollm as string), { threads: 2 })
    const sets = Object.fromEntries(
      await Promise.all(
        ['cities', 'sp_en_trans', 'larger_than'].map(async (name) => {
          const table = await readTable(truth(name))
          const [texts, labels] = [
            columnOf(table, undefined, ['statement'], 'text').values,
            columnOf(table, undefined, ['label'], 'label').values,
          ]
          const step = Math.max(1, Math.floor(texts.length / 150))
          const kept = (values: string[]) => values.filter((_, i) => i % step === 0).slice(0, 150)
          return [name, { texts: kept(texts), labels: kept(labels) }] as const
        }),
      ),
    )
    const { sites, sets: names } = await transferMatrix(model, { sets, site: 'resid_post.18', kind: 'mean-difference', samples: 100 })
    const matrix = sites[0]!.scores.accuracy!
    console.info(
      names,
      [...matrix.data].map((v) => v.toFixed(2)),
    )
    expect(matrix.shape).toEqual([3, 3])
    // What a set teaches about itself is more than chance somewhere; a small model's truth need not be one direction.
    expect(Math.max(...[0, 4, 8].map((i) => matrix.data[i] as number))).toBeGreaterThan(0.6)
    expect([...matrix.data].every((v) => v >= 0 && v <= 1)).toBe(true)
  })
})
