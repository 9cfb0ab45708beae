/** Beam search, bans and penalties against transformers 5 (eager attention, the tiny models of test/goldens). */
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { add } from '../sites/edits.ts'
import type { GenerateOptions } from './generate.ts'
import { load } from './open.ts'

const own = fileURLToPath(new URL('../../test/goldens/', import.meta.url))
const a = [3, 14, 15, 9, 2, 6]
const b = [7, 7, 21, 30, 5, 1]

/** Sequences of each prompt, best first, and their scores, as `generate` of transformers has them. */
const recorded: readonly {
  readonly model: string
  readonly rows: readonly number[][]
  readonly options: GenerateOptions
  readonly tokens: readonly (readonly number[][])[]
  readonly scores: readonly number[][]
}[] = [
  {
    model: 'gpt2',
    rows: [a],
    options: { beams: { count: 3, returned: 3 }, maxNewTokens: 8 },
    tokens: [
      [
        [4, 4, 29, 29, 4, 4, 4, 4],
        [4, 4, 29, 29, 29, 4, 4, 4],
        [4, 4, 4, 29, 29, 4, 4, 4],
      ],
    ],
    scores: [[-1.8787, -1.87909, -1.90885]],
  },
  {
    model: 'mistral',
    rows: [a],
    options: { beams: { count: 3, returned: 3 }, maxNewTokens: 8 },
    tokens: [
      [
        [24, 37, 8, 40, 40, 40, 21, 21],
        [24, 37, 8, 40, 40, 40, 6, 42],
        [24, 37, 8, 40, 40, 40, 6, 45],
      ],
    ],
    scores: [[-1.99811, -1.99951, -2.02407]],
  },
  {
    model: 'mistral',
    rows: [a],
    options: { beams: { count: 3, returned: 3, lengthPenalty: 1 }, maxNewTokens: 10, endTokens: [40] },
    tokens: [
      [
        [24, 24, 43, 40],
        [24, 24, 24, 35, 20, 8, 35, 46, 40],
        [24, 37, 8, 40],
      ],
    ],
    scores: [[-1.97938, -2.00943, -2.06949]],
  },
  {
    model: 'mistral',
    rows: [a],
    options: { beams: { count: 3, returned: 3, lengthPenalty: -1 }, maxNewTokens: 10, endTokens: [40] },
    tokens: [
      [
        [24, 24, 43, 40],
        [24, 37, 8, 40],
        [24, 24, 24, 35, 20, 8, 35, 46, 40],
      ],
    ],
    scores: [[-31.67007, -33.11179, -162.76414]],
  },
  {
    model: 'mistral',
    rows: [a],
    options: { beams: { count: 3, returned: 3, lengthPenalty: 2, earlyStopping: true }, maxNewTokens: 10, endTokens: [40] },
    tokens: [
      [
        [24, 24, 24, 35, 20, 8, 35, 46, 40],
        [24, 24, 43, 40],
        [24, 37, 8, 40],
      ],
    ],
    scores: [[-0.22327, -0.49484, -0.51737]],
  },
  {
    model: 'mistral',
    rows: [a],
    options: { beams: { count: 4, returned: 2, lengthPenalty: 0.6, earlyStopping: 'never' }, maxNewTokens: 10, endTokens: [40] },
    tokens: [
      [
        [24, 24, 43, 40],
        [24, 37, 8, 40],
      ],
    ],
    scores: [[-3.4463, -3.60319]],
  },
  {
    model: 'mistral',
    rows: [a, b],
    options: {
      beams: { count: 2 },
      maxNewTokens: 8,
      minNewTokens: 4,
      endTokens: [21],
      repetitionPenalty: 1.5,
      ban: [24, [8, 40]],
    },
    tokens: [[[46, 39, 13, 8, 20, 41, 41, 18]], [[45, 16, 42, 23, 29, 41, 3, 18]]],
    scores: [[-2.16281], [-1.78243]],
  },
  {
    model: 't5',
    rows: [a, b],
    options: { beams: { count: 3, returned: 2 }, maxNewTokens: 6, endTokens: [46] },
    tokens: [
      [
        [18, 18, 18, 18, 18, 18],
        [18, 18, 18, 18, 18, 38],
      ],
      [
        [37, 37, 37, 37, 37, 37],
        [22, 37, 37, 37, 37, 37],
      ],
    ],
    scores: [
      [-3.29619, -3.33926],
      [-3.24131, -3.24843],
    ],
  },
]

describe('beam search', () => {
  it.each(recorded.map((r, i) => ({ ...r, name: `${r.model} ${i}` })))('finds what transformers finds: $name', async (r) => {
    await using model = await load(join(own, r.model), { threads: 1 })
    const results = await model.generate({ rows: r.rows }, r.options).results()
    for (const [row, result] of results.entries()) {
      expect(result.sequences?.map((s) => s.tokens)).toEqual(r.tokens[row])
      for (const [i, s] of (result.sequences ?? []).entries())
        expect(Math.abs(s.score / (r.scores[row]?.[i] as number) - 1)).toBeLessThan(1e-4)
      expect(result.tokens).toEqual(r.tokens[row]?.[0])
    }
  })

  it('keeps edits in the rows that they are for, whatever number a beam has', async () => {
    await using model = await load(join(own, 'mistral'), { threads: 1 })
    const vector = Float32Array.from({ length: model.spec.dModel }, (_, i) => Math.sin(i))
    const options: GenerateOptions = { beams: { count: 3 }, maxNewTokens: 6, logProbabilities: true }
    const both = await model
      .with(add('resid_post.0', vector, { scale: 3, where: { rows: [1] } }))
      .generate({ rows: [a, b] }, options)
      .results()
    const plain = await model.generate({ ids: a }, options).result()
    const edited = await model
      .with(add('resid_post.0', vector, { scale: 3 }))
      .generate({ ids: b }, options)
      .result()
    expect(both.map((r) => r.tokens)).toEqual([plain.tokens, edited.tokens])
    expect(edited.tokens).not.toEqual((await model.generate({ ids: b }, options).result()).tokens)
    const [sequence] = plain.sequences ?? []
    const sum = (plain.logProbabilities ?? []).reduce((s, v) => s + v, 0)
    expect(sum / plain.tokens.length).toBeCloseTo(sequence?.score as number, 4)
  })
})

describe('bans and penalties', () => {
  it('change greedy choices as in transformers', async () => {
    await using model = await load(join(own, 'mistral'), { threads: 1 })
    const options = { maxNewTokens: 8, minNewTokens: 4, endTokens: [21], repetitionPenalty: 1.5, ban: [24, [8, 40]] }
    expect((await model.generate({ ids: a }, options).result()).tokens).toEqual([46, 39, 13, 8, 20, 27, 41, 18])
  })
})
