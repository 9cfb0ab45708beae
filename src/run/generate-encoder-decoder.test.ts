/** Generation with an encoder: greedy tokens and their probabilities as PyTorch has them, edits and taps on both sides. */
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { openSafetensors } from '../models/formats/index.ts'
import { add, zero } from '../sites/edits.ts'
import type { GenerationStep } from './generate.ts'
import { load } from './open.ts'

const own = fileURLToPath(new URL('../../test/goldens/', import.meta.url))

/** The first two rows of a golden's input, the second one padded on the right. */
async function inputOf(name: string) {
  const golden = await openSafetensors(join(own, name, 'golden.safetensors'))
  const rows = async (tensor: string): Promise<NDArray> => {
    const { dtype, shape, data } = await golden.readRaw(tensor)
    return { dtype, shape: [2, shape[1] as number], data: data.slice(0, 2 * (shape[1] as number)) }
  }
  return { input_ids: await rows('input_ids'), attention_mask: await rows('attention_mask') }
}

/** Greedy tokens of transformers, and logarithms of their probabilities. */
const recorded = [
  {
    name: 't5',
    tokens: [
      [0, 0, 0, 0, 0, 0],
      [46, 46, 46, 46, 46, 46],
    ],
    logProbabilities: [
      [-3.49543, -3.49543, -3.49543, -3.49543, -3.49543, -3.49543],
      [-3.4663, -3.43393, -3.42727, -3.41792, -3.42802, -3.42973],
    ],
  },
  {
    name: 't5-gated',
    tokens: [
      [14, 14, 14, 14, 14, 14],
      [14, 14, 14, 14, 14, 14],
    ],
    logProbabilities: [
      [-2.75624, -2.32476, -2.09301, -2.19264, -2.0121, -2.23609],
      [-1.60863, -1.96936, -1.90598, -1.96123, -1.81175, -1.97765],
    ],
  },
  {
    name: 'bart',
    tokens: [
      [32, 32, 32, 32, 32, 32],
      [32, 32, 32, 32, 32, 32],
    ],
    logProbabilities: [
      [-1.21194, -0.53508, -0.54283, -0.45505, -0.51711, -0.48847],
      [-1.82369, -0.88715, -0.92637, -0.80504, -0.84244, -0.87188],
    ],
  },
] as const

describe.each(recorded)('$name', ({ name, tokens, logProbabilities }) => {
  it('writes what transformers writes', async () => {
    await using model = await load(join(own, name), { threads: 1 })
    const steps: GenerationStep[] = []
    const generation = model.generate(await inputOf(name), { maxNewTokens: 6, ignoreEos: true, logProbabilities: true })
    for await (const step of generation.steps()) steps.push(step)
    for (const row of [0, 1]) {
      const mine = steps.filter((s) => s.row === row)
      expect(mine.map((s) => s.token)).toEqual(tokens[row])
      for (const [i, s] of mine.entries()) expect(s.logProbability).toBeCloseTo(logProbabilities[row]?.[i] as number, 3)
    }
    expect((await generation.results()).map((r) => r.promptTokens)).toEqual([12, 8])
  })

  it('carries edits and taps on both sides, as the whole run without a cache does', async () => {
    await using model = await load(join(own, name), { threads: 1 })
    const input = await inputOf(name)
    const vector = Float32Array.from({ length: model.architecture.stacks[0].dModel }, (_, i) => Math.sin(i))
    const edited = model.with(
      add('encoder.resid_post.0', vector, { where: { positions: [0, -1] } }),
      add('decoder.cross_v.1', 0.3),
      add('decoder.resid_post.1', vector),
      zero('decoder.attn_out.0'),
    )
    const taps = ['encoder.resid_post.1', 'decoder.resid_post.1', 'decoder.cross_attn_probs.1'] as const
    const steps: GenerationStep[] = []
    for await (const step of edited.generate(input, { maxNewTokens: 6, ignoreEos: true, taps }).steps()) steps.push(step)
    const written = [0, 1].map((row) => steps.filter((s) => s.row === row).map((s) => s.token))
    const start = model.tokens(input).rows[0]?.[0] as number
    const given = written.flatMap((row) => [start, ...row.slice(0, -1)])
    const decoder_input_ids: NDArray = { dtype: 'int64', shape: [2, 6], data: BigInt64Array.from(given, BigInt) }
    const whole = await edited.run({ ...input, decoder_input_ids }, { taps })
    const step = steps.at(-1) as GenerationStep
    for (const row of [0, 1]) {
      const logits = Array.from({ length: 6 }, (_, p) => Array.from(whole.logits.at(row, p)))
      expect(logits.map((l) => l.indexOf(Math.max(...l)))).toEqual(written[row])
      const [a, b] = [step.taps['decoder.resid_post.1']?.at(row, 0) as Float32Array, whole.taps['decoder.resid_post.1'].at(row, -1)]
      for (const [i, x] of b.entries()) expect(a[i]).toBeCloseTo(x, 4)
      const [e, f] = [step.taps['encoder.resid_post.1']?.row(row).data as Float32Array, whole.taps['encoder.resid_post.1'].row(row).data]
      for (const [i, x] of f.entries()) expect(e[i]).toBeCloseTo(x, 4)
    }
    const plain = await model.generate(input, { maxNewTokens: 6, ignoreEos: true, logProbabilities: true }).results()
    expect(plain.map((r) => r.tokens)).not.toEqual(written)
    expect((step.taps['decoder.cross_attn_probs.1'] as { shape: readonly number[] }).shape).toEqual([2, 3, 1, 12])
  })
})
