import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { temporaryFolder } from '../models/formats/testing.ts'
import { generatedRows } from '../run/index.ts'
import { tinyLlama } from '../run/testing.ts'
import { definePaper, gateResults, meanInterval, type Paper, runPaper, verdictOf, writeResult } from './index.ts'

beforeEach(() => vi.stubEnv('ACTLENS_HOME', temporaryFolder()))
afterEach(() => vi.unstubAllEnvs())

let ran: number[] = []
const sample = (change: Partial<Paper> = {}): Paper =>
  definePaper({
    slug: 'sample',
    title: 'A sample & its <claim>',
    authors: 'Nobody (2026)',
    source: '2503.10679',
    family: 'steer',
    question: 'Is ten more than five?',
    claim: { text: 'Ten is more than five.', metric: 'size', threshold: 5 },
    ours: (m) => m.size as number,
    baselines: { half: (m) => (m.size as number) / 2 },
    controls: { nothing: () => 0 },
    gates: [
      { name: 'more', role: 'claim', text: 'The size is more than five.', of: (m) => m.size as number, atLeast: 5 },
      { name: 'nothing', role: 'control', text: 'Nothing stays small.', of: () => 0, atMost: 1 },
    ],
    data: 'None.',
    scale: 'The same.',
    notReproduced: ['the rest'],
    model: 'none',
    seeds: [0, 1, 2],
    revision: 1,
    repeat: async (study) => {
      ran.push(study.seed)
      return {
        metrics: { size: 10 + study.seed, odd: Number.NaN },
        tables: [{ name: 't', title: 'Some <table>', columns: ['a', 'b'], rows: [['x', 1.23456789]] }],
        figures: [
          {
            name: 'f',
            title: 'A line',
            caption: 'It rises.',
            kind: 'line',
            x: { key: 'x', label: 'x (steps)' },
            y: { key: 'y', label: 'y' },
            series: { key: 's', label: 'kind' },
            data: [
              { x: 0, y: 1, s: 'a' },
              { x: 1, y: 2, s: 'a' },
            ],
          },
        ],
      }
    },
    ...change,
  })

test('a paper runs over its seeds, caches what it did, and writes a result and a report', async () => {
  ran = []
  const paper = sample()
  const result = await runPaper(paper)
  expect(ran).toEqual([0, 1, 2])
  expect(result).toMatchObject({
    verdict: 'reproduced',
    ours: 11,
    baselines: { half: 5.5 },
    controls: { nothing: 0 },
    seeds: [0, 1, 2],
    quick: false,
  })
  const again = await runPaper(paper)
  expect(ran).toEqual([0, 1, 2])
  expect(again.repeats).toEqual(result.repeats)
  expect(Number.isNaN(again.repeats[0]?.metrics.odd)).toBe(true)
  await runPaper(sample({ revision: 2 }), { seed: 1 })
  expect(ran).toEqual([0, 1, 2, 1])
  const folder = join(temporaryFolder(), 'new')
  await writeResult(folder, paper, result)
  const html = readFileSync(join(folder, 'report.html'), 'utf8')
  expect(html).toContain('A sample &amp; its &lt;claim&gt;')
  expect(html).toContain('<svg')
  expect(html).not.toMatch(/<script|src=|@import|url\(/)
  expect(JSON.parse(readFileSync(join(folder, 'result.json'), 'utf8')).slug).toBe('sample')
})

test('a quick run uses one seed and never decides', async () => {
  const result = await runPaper(sample(), { quick: true })
  expect(result).toMatchObject({ verdict: 'inconclusive', seeds: [0], quick: true })
  expect(result.reason).toMatch(/smoke test.*reproduced/)
})

const gate = { name: 'g', text: 'It holds.', of: (m: Readonly<Record<string, number>>) => m.x as number }
test.each([
  ['reproduced', 'claim', [2, 3, 2]],
  ['refuted', 'claim', [0, 0.5, 0]],
  ['inconclusive', 'claim', [0, 1.5, 0]],
  ['refuted', 'control', [0, 0, 0.2]],
  ['inconclusive', 'setting', [0, 0, 0]],
  ['refuted', 'claim', [Number.NaN, Number.NaN]],
] as const)('the verdict is %s where a %s has the values %j', (verdict, role, values) => {
  const results = gateResults(
    [{ ...gate, role, atLeast: 1 }],
    values.map((x) => ({ x })),
  )
  expect(verdictOf(results, false).verdict).toBe(verdict)
})

test('the interval of a mean is that of Student', () => {
  const { mean, interval } = meanInterval([1, 2, 3])
  expect(mean).toBe(2)
  expect(interval[1] - 2).toBeCloseTo(4.303 / Math.sqrt(3), 3)
})

test('a budget of time leaves out repeats and says so; --model is refused where it has no place; a cancelled run keeps its steps', async () => {
  const result = await runPaper(sample(), { minutes: 1e-9 })
  expect(result.seeds).toEqual([0])
  expect(result.reason).toMatch(/left out 2 of 3/)
  await expect(runPaper(sample(), { model: 'embedded' })).rejects.toThrow(/no place/)
  const stop = new AbortController()
  const slow = sample({
    slug: 'slow',
    repeat: async (study) => {
      await study.step('first', {}, async () => 1)
      stop.abort()
      await study.step('second', {}, async () => 2)
      return { metrics: { size: 10 } }
    },
  })
  await expect(runPaper(slow, { signal: stop.signal })).rejects.toThrow(/goes on from there/)
})

test('a small model is trained once, and found again', async () => {
  let steps = 0
  const paper = sample({
    slug: 'trains',
    repeat: async (study) => {
      const data = generatedRows((random) => ({ ids: [1, 2 + random.below(3), 4] }), { batch: 4, seed: study.seed })
      const model = await study.trained('toy', {
        config: tinyLlama,
        data: {
          ...data,
          next: () => {
            steps++
            return data.next()
          },
        },
        steps: 6,
        rate: 1e-3,
        recipe: { kind: 'three tokens' },
      })
      const { logits } = await model.run({ ids: [1, 2] })
      return { metrics: { size: 10, logit: logits.data[0] as number } }
    },
  })
  const first = await runPaper(paper, { seed: 0 })
  expect(steps).toBe(6)
  const second = await runPaper({ ...paper, gates: [] }, { seed: 0, fresh: false })
  expect(steps).toBe(6)
  expect(second.repeats).toEqual(first.repeats)
  expect(existsSync(join(process.env.ACTLENS_HOME as string, 'cache', 'papers', 'trains'))).toBe(true)
})
