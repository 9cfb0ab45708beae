import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { cli, writeModel, writeTokenizer } from '../testing.ts'

let home: string
const at = (name: string) => join(home, name)
beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'actlens-cli-resistance-'))
  await writeModel(at('words'))
  await writeTokenizer(at('words'))
  await writeFile(at('questions.txt'), 'w5 w9 w12\nw30 w31 w2 w7\nw44 w8\n')
  await writeFile(at('a.txt'), 'w10 w11\nw12 w13\n')
  await writeFile(at('b.txt'), 'w50 w51\nw52 w53\n')
  const made = await cli([
    'vector',
    at('words'),
    '--positive',
    at('a.txt'),
    '--negative',
    at('b.txt'),
    '--site',
    'resid_post.0',
    '--out',
    at('v.safetensors'),
    '--quiet',
  ])
  expect([made.code, made.stderr]).toEqual([0, ''])
})
afterAll(() => rm(home, { recursive: true, force: true }))

describe('resistance', () => {
  it('calibrates, steers and controls, and writes the answers', async () => {
    const argv = [
      'resistance',
      at('words'),
      '--prompts',
      at('questions.txt'),
      '--vectors',
      at('v.safetensors'),
      '--rounds',
      '3',
      '--trials',
      '4',
    ]
    const more = ['--max-new-tokens', '6', '--temperature', '0', '--hold', '4', '--out', at('answers.json'), '--json', '--quiet']
    const ran = await cli([...argv, ...more])
    expect(ran.code, ran.stderr).toBe(0)
    const { site, runs, detectors, distractors } = JSON.parse(ran.stdout)
    expect(site).toBe('resid_post.0')
    expect(Object.keys(runs)).toEqual(['unsteered', 'boosted', 'detectors held', 'random set 0', 'random set 1', 'random set 2'])
    // Greedy and unsteered, answers are the references themselves.
    expect(runs.unsteered).toMatchObject({ answers: 4, multiAttempt: { count: 0, of: 4 }, resistance: { count: 0 } })
    expect(runs.unsteered.firstScore).toBeGreaterThan(60)
    expect([detectors.length, distractors[0].calibration.queries.length]).toEqual([4, 3])
    const kept = JSON.parse(await readFile(at('answers.json'), 'utf8'))
    expect(kept.runs.boosted.answers).toHaveLength(4)
    expect(kept.runs.boosted.answers[0]).toMatchObject({ distractor: 0, scores: [expect.any(Number)], text: expect.stringMatching(/w\d/) })
  })

  it('refuses what cannot be meant', async () => {
    const base = ['resistance', at('words'), '--prompts', at('questions.txt')]
    for (const [more, why] of [
      [[], /--vectors or --sae/],
      [['--vectors', at('v.safetensors'), '--latents', '3'], /belong to an autoencoder/],
      [['--sae', at('none')], /which latents distract/],
      [['--vectors', at('v.safetensors'), '--read', 'mlp_act.0'], /give --hold, too/],
    ] as const) {
      const ran = await cli([...base, ...more])
      expect(ran.code).toBe(2)
      expect(ran.stderr).toMatch(why)
    }
  })
})
