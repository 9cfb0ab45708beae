/** Log-probabilities, alternatives, forced beginnings, bans, penalties, processors as functions and in the program, random streams. */
import { describe, expect, it } from 'vitest'
import { add, edit } from '../sites/edits.ts'
import { mul, sub, type Tensor } from '../tensor/index.ts'
import type { GenerateOptions, GenerationStep, Model } from './index.ts'
import { tinyGpt2, tinyLlama, tinyModel } from './testing.ts'

const ids = [3, 14, 15, 9, 2, 6]

async function stepsOf(model: Model, options: GenerateOptions, rows = [ids]): Promise<GenerationStep[]> {
  const steps: GenerationStep[] = []
  for await (const s of model.generate({ rows }, options).steps()) steps.push(s)
  return steps
}

const logSoftmax = (x: Float32Array) => {
  const top = Math.max(...x)
  const total = top + Math.log(x.reduce((s, v) => s + Math.exp(v - top), 0))
  return Array.from(x, (v) => v - total)
}

describe.each([tinyLlama, tinyGpt2])('$model_type', (config) => {
  it('gives log-probabilities and the likeliest tokens, as a run of the whole text has them', async () => {
    await using model = await tinyModel(config)
    const steps = await stepsOf(model, { maxNewTokens: 5, logProbabilities: true, alternatives: 3, temperature: 1, seed: 2 })
    const { logits } = await model.run({ ids: [...ids, ...steps.map((s) => s.token)] })
    for (const [n, step] of steps.entries()) {
      const all = logSoftmax(logits.at(0, ids.length - 1 + n))
      expect(step.logProbability).toBeCloseTo(all[step.token] as number, 4)
      const best = [...all.keys()].sort((x, y) => (all[y] as number) - (all[x] as number)).slice(0, 3)
      expect(step.alternatives?.map((x) => x.token)).toEqual(best)
      for (const x of step.alternatives ?? []) expect(x.logProbability).toBeCloseTo(all[x.token] as number, 4)
    }
  })

  it('begins as it is told, and goes on as after these tokens', async () => {
    await using model = await tinyModel(config)
    const { tokens } = await model.generate({ ids }, { maxNewTokens: 6, begin: [50, 51] }).result()
    expect(tokens.slice(0, 2)).toEqual([50, 51])
    const after = await model.generate({ ids: [...ids, 50, 51] }, { maxNewTokens: 4 }).result()
    expect(tokens.slice(2)).toEqual(after.tokens)
    // They count as written: an edit of generated positions holds on them.
    const v = Float32Array.from({ length: 32 }, (_, i) => Math.cos(i))
    const steered = model.with(add('resid_post.0', v, { scale: 4, where: { phase: 'generated' } }))
    const begun = await steered.generate({ ids }, { maxNewTokens: 6, begin: [50, 51] }).result()
    const run = await steered.run({ ids: [...ids, ...begun.tokens] }, { promptLength: ids.length })
    for (const [n, token] of begun.tokens.entries())
      if (n >= 2) {
        const last = run.logits.at(0, ids.length - 1 + n)
        expect(token).toBe(last.indexOf(Math.max(...last)))
      }
  })
})

describe('choosing', () => {
  it('applies presence and frequency penalties to what was written', async () => {
    await using model = await tinyModel()
    const options = { maxNewTokens: 8, presencePenalty: 0.7, frequencyPenalty: 0.4 }
    const { tokens } = await model.generate({ ids }, options).result()
    const { logits } = await model.run({ ids: [...ids, ...tokens] })
    for (const [n, token] of tokens.entries()) {
      const last = logits.at(0, ids.length - 1 + n)
      for (const id of new Set(tokens.slice(0, n)))
        last[id] = (last[id] as number) - 0.7 - 0.4 * tokens.slice(0, n).filter((t) => t === id).length
      expect(token).toBe(last.indexOf(Math.max(...last)))
    }
    expect(tokens).not.toEqual((await model.generate({ ids }, { maxNewTokens: 8 }).result()).tokens)
  })

  it('calls processors with what a row has written, and refuses when nothing is left', async () => {
    await using model = await tinyModel()
    const seen: number[][] = []
    // Only even tokens.
    const even = (logits: Float32Array, context: { tokens: readonly number[]; promptTokens: number; row: number }) => {
      if (context.row === 1) seen.push(context.tokens.slice(context.promptTokens))
      for (let id = 1; id < logits.length; id += 2) logits[id] = Number.NEGATIVE_INFINITY
    }
    const [a, b] = await model.generate({ rows: [ids, ids.slice(2)] }, { maxNewTokens: 4, processors: [even] }).results()
    expect([...(a?.tokens ?? []), ...(b?.tokens ?? [])].every((t) => t % 2 === 0)).toBe(true)
    expect(seen).toEqual([0, 1, 2, 3].map((n) => b?.tokens.slice(0, n)))
    const nothing = (logits: Float32Array) => void logits.fill(Number.NEGATIVE_INFINITY)
    await expect(model.generate({ ids }, { processors: [nothing] }).result()).rejects.toThrow('No token is left for row 0')
  })

  it('takes a traced function into the program, once for each function, and reads sites in it', async () => {
    await using model = await tinyModel()
    const plain = await model.generate({ ids }, { maxNewTokens: 6 }).result()
    const least = (logits: Tensor) => mul(logits, -1)
    const turned = await model.generate({ ids }, { maxNewTokens: 6, logits: least }).result()
    const { logits } = await model.run({ ids: [...ids, ...turned.tokens] })
    for (const [n, token] of turned.tokens.entries()) {
      const last = logits.at(0, ids.length - 1 + n)
      expect(token).toBe(last.indexOf(Math.min(...last)))
    }
    const compiled = model.statistics.compiled
    await model.generate({ ids }, { maxNewTokens: 2, logits: least }).result()
    expect(model.statistics.compiled).toBe(compiled)
    // Contrast of the last states with an earlier layer's, as in contrastive decoding within one model.
    const contrast = {
      reads: ['logits_pre'],
      apply: (value: Tensor, { read }: { read: (site: string) => Tensor }) => sub(value, mul(read('logits_pre'), 2)),
    }
    expect((await model.generate({ ids }, { maxNewTokens: 6, logits: contrast }).result()).tokens).toEqual(turned.tokens)
    // The same as an edit at the site, which is what it is.
    const edited = await model.with(edit('logits', least)).generate({ ids }, { maxNewTokens: 6 }).result()
    expect(edited.tokens).toEqual(turned.tokens)
    expect(turned.tokens).not.toEqual(plain.tokens)
  })

  it('draws by a stream for each row, or by one for all', async () => {
    await using model = await tinyModel()
    const draw = async (rows: number[][], options: GenerateOptions) =>
      (await model.generate({ rows }, { maxNewTokens: 8, temperature: 1.5, ...options }).results()).map((r) => r.tokens)
    const [first, second] = await draw([ids, ids], { seed: 5 })
    expect(await draw([ids], { seed: 5 })).toEqual([first])
    expect(await draw([ids], { seed: 6 })).toEqual([second])
    const shared = await draw([ids, ids], { seed: 5, randomness: 'shared' })
    expect(await draw([ids, ids], { seed: 5, randomness: 'shared' })).toEqual(shared)
    expect(shared).not.toEqual([first, second])
    // Rows take turns: the first number of the stream goes to row 0, the second one to row 1.
    expect(shared[0]?.[0]).toBe(first?.[0])
  })

  it.each<[GenerateOptions, string]>([
    [{ maxNewTokens: 2, minNewTokens: 3 }, 'minNewTokens is 3, but maxNewTokens only 2'],
    [{ ban: [61] }, "'ban' names the token 61"],
    [{ ban: ['x'] }, 'needs a tokenizer'],
    [{ begin: [] }, "'begin' is empty"],
    [{ begin: [1, 2, 3], maxNewTokens: 2 }, 'begins with 3 tokens, but only 2'],
    [{ beams: { count: 2 }, temperature: 1 }, 'A beam search draws nothing'],
    [{ beams: { count: 2, returned: 3 } }, 'only 2 beams'],
    [{ beams: { count: 1 } }, 'beams.count must be an integer of at least 2'],
    [{ endTokens: [3], ignoreEos: true }, 'give one of the two'],
    [{ constraint: { regex: 'a' } }, 'needs a tokenizer'],
    [{ randomness: 'rows' as 'row' }, "randomness must be 'row' or 'shared'"],
  ])('refuses %j', async (options, words) => {
    await using model = await tinyModel()
    expect(() => model.generate({ ids }, options)).toThrow(words)
  })
})
