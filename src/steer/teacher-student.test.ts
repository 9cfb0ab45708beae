import { expect, test } from 'vitest'
import type { NDArray } from '../base/types.ts'
import type { Config } from '../models/config.ts'
import { batches, RandomStream } from '../nn/index.ts'
import { type Model, modelOf, trainDecoder, trainingRows } from '../run/index.ts'
import { tinyLlama, tinyModel } from '../run/testing.ts'
import { meanRow, type Rows, rowAt } from './rows.ts'
import { type AnsweredTurn, answerLosses, pooledAnswers, teacherStudent, tuneStrength, turnsInput } from './teacher-student.ts'
import { cosine, gaussianRows, plantedModel, relativeError } from './testing.ts'

const site = 'resid_post.1'
const closing = [2, 3]
const random = RandomStream.of(3)
const some = (n: number) => Array.from({ length: n }, () => 4 + random.below(50))
const pairs = Array.from({ length: 7 }, (_, i) => ({
  prompt: { ids: some(4 + (i % 3)) },
  teacher: some(3 + (i % 4)),
  student: some(2 + (i % 2)),
}))
const teacherTurns = pairs.map((p) => ({ ...p.prompt, answer: p.teacher }))

const imageToken = 1
const tinyLlava: Config = {
  model_type: 'llava',
  image_token_index: imageToken,
  vision_feature_select_strategy: 'full',
  vision_feature_layer: -1,
  text_config: tinyLlama,
  vision_config: {
    model_type: 'siglip_vision_model',
    hidden_size: 16,
    intermediate_size: 32,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    image_size: 4,
    patch_size: 2,
  },
}
const picture = (): NDArray<Float32Array> => ({
  dtype: 'float32',
  shape: [3, 4, 4],
  data: Float32Array.from({ length: 48 }, () => random.normal()),
})
const imageTurns: AnsweredTurn[] = Array.from({ length: 5 }, (_, i) => ({
  ids: [...new Array<number>(4).fill(imageToken), ...some(2 + (i % 3))],
  images: [picture()],
  answer: some(3 + (i % 2)),
}))

/** A model that reads images, with random weights. */
async function imageModel(): Promise<Model> {
  const [{ answer, ...turn }] = imageTurns as [AnsweredTurn]
  const row = { ...turn, ids: [...turn.ids, ...answer] }
  const data = batches(trainingRows([row]), { batch: 1 })
  return modelOf(await trainDecoder({ config: tinyLlava, data, steps: 1, rate: 0, runtime: { threads: 1 } }), { threads: 1 })
}

/** The same mean from the taps of one row at a time. */
async function byHand(model: Model, { ids, images, answer }: AnsweredTurn, pool: 'answer' | 'sequence'): Promise<Float64Array> {
  const whole = { ids: [...ids, ...answer, ...closing], ...(images ? { images } : {}) }
  const { taps } = await model.run(turnsInput([whole]), { taps: [site] })
  const [from, to] = pool === 'sequence' ? [0, whole.ids.length] : [ids.length, ids.length + answer.length]
  const mean = new Float64Array(tinyLlama.hidden_size as number)
  for (let p = from; p < to; p++) for (const [i, v] of taps[site].at(0, p).entries()) mean[i] = (mean[i] as number) + v / (to - from)
  return mean
}

test.each([
  ['tokens', () => tinyModel(), teacherTurns],
  ['images', imageModel, imageTurns],
] as const)('answers of rows of %s are pooled as one row after another', async (_, make, turns) => {
  await using model = await make()
  for (const pool of ['answer', 'sequence'] as const) {
    const { rows } = await pooledAnswers(model, turns, { site, pool, closing, batchSize: 3 })
    for (const [i, turn] of turns.entries())
      expect(relativeError(rowAt(rows.get(site) as Rows, i), await byHand(model, turn, pool))).toBeLessThan(1e-5)
  }
})

test('the mean of contrasts is the difference of means, and the prompt takes part only by the lengths', async () => {
  await using model = await tinyModel()
  const read = async (of: 'teacher' | 'student', pool: 'answer' | 'sequence') => {
    const turns = pairs.map((p) => ({ ...p.prompt, answer: p[of] }))
    return (await pooledAnswers(model, turns, { site, pool, closing: [] })).rows.get(site) as Rows
  }
  const { contrasts, vector } = await teacherStudent(model, { pairs, site, pool: 'sequence', closing: [] })
  const [plus, minus] = [await read('teacher', 'sequence'), await read('student', 'sequence')]
  const [p, q, r] = [meanRow(plus), meanRow(minus), meanRow(contrasts.get(site) as Rows)]
  for (const [i, v] of r.entries()) expect(Math.abs(v - ((p[i] as number) - (q[i] as number)))).toBeLessThan(1e-12)
  expect([...vector.at(site)]).toEqual([...Float32Array.from(r)])
  // r of a pair = Σ⁺/T⁺ − Σ⁻/T⁻ + (1/T⁺ − 1/T⁻) Σ_prompt
  const [above, below] = [await read('teacher', 'answer'), await read('student', 'answer')]
  for (const [i, { prompt, teacher, student }] of pairs.entries()) {
    const [a, b] = [prompt.ids.length + teacher.length, prompt.ids.length + student.length]
    const { taps } = await model.run({ ids: prompt.ids }, { taps: [site] })
    const inPrompt = new Float64Array(r.length)
    for (let t = 0; t < prompt.ids.length; t++)
      for (const [j, v] of taps[site].at(0, t).entries()) inPrompt[j] = (inPrompt[j] as number) + v
    const wanted = Array.from(
      inPrompt,
      (v, j) =>
        (teacher.length * (rowAt(above, i)[j] as number)) / a - (student.length * (rowAt(below, i)[j] as number)) / b + (1 / a - 1 / b) * v,
    )
    expect(relativeError(rowAt(contrasts.get(site) as Rows, i), wanted)).toBeLessThan(1e-4)
  }
})

test('what comes before the answers is the same in both passes, to the bit', async () => {
  await using model = await tinyModel()
  const [{ prompt, teacher, student }] = pairs as [(typeof pairs)[0]]
  const { taps } = await model.run(
    {
      rows: [
        [...prompt.ids, ...teacher],
        [...prompt.ids, ...student],
      ],
    },
    { taps: [site] },
  )
  for (let p = 0; p < prompt.ids.length; p++) expect(taps[site].at(0, p)).toEqual(taps[site].at(1, p))
})

test('answers of unequal length put the prompt into a vector over sequences, and a warning says so', async () => {
  const [width, words] = [32, 20]
  const [any, scene] = gaussianRows(2, width, 5) as [number[], number[]]
  const shared = any.reduce((sum, v, i) => sum + v * (scene[i] as number), 0) / scene.reduce((sum, v) => sum + v * v, 0)
  const direction = any.map((v, i) => v - shared * (scene[i] as number))
  const plus = (noise: number[], what: number[], factor: number) => noise.map((v, i) => 0.3 * v + factor * (what[i] as number))
  // Three kinds of words: of prompts, which share the scene's state; of students; of teachers, which share the direction.
  const rows = gaussianRows(3 * words, width, 6).map((noise, i) =>
    i < words ? plus(noise, scene, 40) : plus(noise, direction, i < 2 * words ? 0 : 1),
  )
  await using model = await plantedModel(rows)
  const draw = (kind: number, n: number) => Array.from({ length: n }, () => kind * words + random.below(words))
  const unequal = Array.from({ length: 40 }, () => ({ prompt: { ids: draw(0, 40) }, student: draw(1, 3), teacher: draw(2, 8) }))
  const options = { pairs: unequal, site: 'embeddings' }
  const [bySequence, byAnswer] = [await teacherStudent(model, { ...options, pool: 'sequence' }), await teacherStudent(model, options)]
  expect(Math.abs(cosine(bySequence.vector.at('embeddings'), scene))).toBeGreaterThan(0.99)
  expect(Math.abs(cosine(bySequence.vector.at('embeddings'), direction))).toBeLessThan(0.06)
  expect(cosine(byAnswer.vector.at('embeddings'), direction)).toBeGreaterThan(0.95)
  expect(bySequence.warnings.join()).toMatch(/8\.0 tokens on average and the student's 3\.0 \(\+167 %\), so the vector holds that share/)
  expect(byAnswer.warnings.join()).toMatch(/longer or shorter answers/)
  const equal = unequal.map((p) => ({ ...p, teacher: p.teacher.slice(0, 3) }))
  const fair = await teacherStudent(model, { ...options, pairs: equal, pool: 'sequence' })
  expect(fair.warnings).toEqual([])
  expect(cosine(fair.vector.at('embeddings'), direction)).toBeGreaterThan(0.95)
})

test('losses are those of the answers alone, edits in force', async () => {
  await using model = await tinyModel()
  const { vector } = await teacherStudent(model, { pairs, site })
  for (const m of [model, model.with(vector.edits({ scale: 3 }))]) {
    const losses = await answerLosses(m, teacherTurns, { closing, batchSize: 4 })
    for (const [i, { ids, answer }] of teacherTurns.entries()) {
      const whole = [...ids, ...answer, ...closing]
      const { logits } = await m.run({ ids: whole })
      const wanted = [...answer, ...closing].map((id, t) => {
        const x = logits.at(0, ids.length + t - 1)
        return Math.log(x.reduce((s, v) => s + Math.exp(v), 0)) - (x[id] as number)
      })
      expect(relativeError(losses[i] as Float32Array, wanted)).toBeLessThan(1e-4)
    }
  }
})

test('the best strength is found, also where it is below zero, and a scan that would not see it says so', async () => {
  await using model = await tinyModel()
  const { vector } = await teacherStudent(model, { pairs, site })
  const scaleOf = (m: Model) => ((m.edits[0] as { params?: { scale?: number } } | undefined)?.params?.scale ?? 0) as number
  const score = async (m: Model) => 1 - Math.abs(scaleOf(m) + 0.5)
  const found = await tuneStrength(model, vector, { strengths: { [site]: [-1, -0.5, 0.5, 1] }, score })
  expect(found.best).toEqual({ site, strength: -0.5, score: 1 })
  expect(found.unsteered).toBe(0.5)
  expect(found.tried.map((t) => t.score)).toEqual([0.5, 1, 0, -0.5])
  expect(found.warnings.join()).toMatch(/sign turned/)
  const blind = await tuneStrength(model, vector, { strengths: { [site]: [0.5, 1] }, score })
  expect(blind.warnings.join(' ')).toMatch(/No strength below zero .* No strength does better/)
  await expect(tuneStrength(model, vector, { strengths: {}, score })).rejects.toThrow(/no strength to try/)
})

test('empty answers and sites of another sequence are refused', async () => {
  await using model = await imageModel()
  await expect(pooledAnswers(model, [{ ids: [4], answer: [] }], { site })).rejects.toThrow(/empty prompt or answer/)
  await expect(pooledAnswers(model, [], { site })).rejects.toThrow(/no answer to read/)
  await expect(pooledAnswers(model, imageTurns, { site: 'vision.resid_post.0' })).rejects.toThrow(/not those of the text/)
})
