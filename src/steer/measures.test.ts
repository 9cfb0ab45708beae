import { expect, test } from 'vitest'
import { tinyModel } from '../run/testing.ts'
import { add } from '../sites/index.ts'
import { candidateScores, distinct, divergence, longestRun, perplexity, repetition, tokenLosses } from './measures.ts'

const rows = [
  [3, 4, 5, 6, 7],
  [8, 9],
  [10, 11, 12, 13],
]

/** Log-probabilities of a row, by hand. */
function logProbabilities(x: Float32Array): Float64Array {
  const top = Math.max(...x)
  const sum = x.reduce((s, v) => s + Math.exp(v - top), 0)
  return Float64Array.from(x, (v) => v - top - Math.log(sum))
}

test('losses, perplexity and divergence are those of the logits, whatever the passes', async () => {
  const model = await tinyModel()
  const steered = model.with(add('resid_post.1', new Float32Array(32).fill(0.4)))
  const [a, b] = [await model.run({ rows }), await steered.run({ rows })]
  let [loss, count, kl, entropy, places] = [0, 0, 0, 0, 0]
  for (const [r, row] of rows.entries())
    for (const [p] of row.entries()) {
      const [p0, p1] = [logProbabilities(a.logits.at(r, p)), logProbabilities(b.logits.at(r, p))]
      kl += p0.reduce((s, l, i) => s + Math.exp(l) * (l - (p1[i] as number)), 0)
      entropy -= p1.reduce((s, l) => s + Math.exp(l) * l, 0) / Math.LN2
      places++
      if (p === 0) continue
      loss -= logProbabilities(a.logits.at(r, p - 1))[row[p] as number] as number
      count++
    }
  for (const batchTokens of [4096, 5]) {
    expect(await perplexity(model, { rows }, { batchTokens })).toBeCloseTo(Math.exp(loss / count), 3)
    const d = await divergence(model, steered, { rows }, { batchTokens })
    expect(d.kl).toBeCloseTo(kl / places, 5)
    expect(d.entropy).toBeCloseTo(entropy / places, 4)
    expect(d.klByToken.map((k) => k.length)).toEqual([5, 2, 4])
  }
  expect((await tokenLosses(model, { rows })).map((l) => l.length)).toEqual([4, 1, 3])
  const last = await divergence(model, steered, { rows }, { positions: 'last' })
  const all = await divergence(model, steered, { rows })
  expect(last.klByToken.map((k) => k[0])).toEqual(all.klByToken.map((k) => expect.closeTo(k.at(-1) as number, 5)))
  expect((await divergence(model, model, { rows })).kl).toBe(0)
  await expect(tokenLosses(model, { ids: [1] })).rejects.toThrow(/one token/)
  await model.dispose()
})

test('scores of candidates are the logits after each text, and their share of the probability', async () => {
  const model = await tinyModel()
  const { logits } = await model.run({ rows })
  const found = await candidateScores(model, { rows }, [7, 2], { batchTokens: 5 })
  for (const [r] of rows.entries()) {
    const all = logProbabilities(logits.at(r, -1))
    expect([...(found.logits[r] as Float32Array)]).toEqual([7, 2].map((i) => expect.closeTo(logits.at(r, -1)[i] as number, 5)))
    expect(found.logMass[r]).toBeCloseTo(Math.log(Math.exp(all[7] as number) + Math.exp(all[2] as number)), 5)
  }
  await expect(candidateScores(model, { rows }, [61])).rejects.toThrow(/no token 61/)
  await model.dispose()
})

test('diversity and repetition of text', () => {
  expect(distinct(['a b a b'], 2)).toBeCloseTo(2 / 3)
  expect(distinct([[1, 2, 3]], 1)).toBe(1)
  expect(repetition('the cat. The cat sat', 2)).toBeCloseTo(1 / 4)
  expect(repetition('a', 3)).toBe(0)
  expect(longestRun('no no no yes yes')).toBe(3)
})
