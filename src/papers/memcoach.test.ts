import { expect, test } from 'vitest'
import { RandomStream } from '../nn/index.ts'
import { answeredPairs, outcomeOf } from './memcoach-loop.ts'
import { rankCorrelation } from './statistics.ts'
import {
  actionName,
  actions,
  attributes,
  coachModel,
  differing,
  edited,
  habitualAdvice,
  levels,
  memorability,
  photoPrompt,
  pixels,
  randomPhoto,
  rendered,
  scene,
  studentPrompt,
  teacherPrompt,
} from './toys/photos.ts'

const bigger = actions.find((a) => actionName(a) === 'more subject size') as number
const darker = actions.find((a) => actionName(a) === 'less brightness') as number

test('the photo world: M, scenes, and an editor that carries out actions exactly', () => {
  const random = RandomStream.of(2)
  // Σ w (p − 1.5) with p = (3, 3, 3, 0, ·) is 1.5 · (0.9 + 0.7 + 0.8 + 0.6).
  expect(memorability([3, 3, 3, 0, 2])).toBeCloseTo(1 / (1 + Math.exp(-0.6 * 4.5)), 12)
  expect(memorability([1, 2, 0, 3, 0])).toBe(memorability([1, 2, 0, 3, 3]))
  expect(edited([1, 0, 0, 0, 0], [bigger, bigger, bigger, darker, 0])).toEqual([3, 0, 0, 0, 0])
  for (let n = 0; n < 50; n++) {
    const photos = scene(random)
    const scores = photos.map(memorability)
    expect(scores).toEqual([...scores].sort((a, b) => a - b))
    const [from, to] = [photos[0], photos[5]] as [number[], number[]]
    const list = differing(from, to, random)
    const once = edited(from, list)
    expect(list.length).toBe(from.filter((v, i) => v !== to[i]).length)
    for (const [i, v] of once.entries()) expect(v - (from[i] as number)).toBe(Math.sign((to[i] as number) - (from[i] as number)))
  }
})

test('habits say 2 to 4 actions, of the styles in their shares, and repeat them only where they may', () => {
  const random = RandomStream.of(4)
  const lists = Array.from({ length: 3000 }, () => habitualAdvice(random, true))
  expect(lists.every((l) => l.length >= 2 && l.length <= 4 && l.every((t) => actions.includes(t)))).toBe(true)
  const all = lists.flat()
  // 40 % light at 80 %, and a fifth of what is drawn from anything.
  const light = all.filter((t) => actionName(t).endsWith('brightness')).length / all.length
  expect(light).toBeCloseTo(0.4 * (0.8 + 0.2 * 0.2) + 0.25 * 0.2 * 0.2 + 0.35 * 0.2, 1)
  expect(lists.some((l) => new Set(l).size < l.length)).toBe(true)
  expect(Array.from({ length: 500 }, () => habitualAdvice(random, false)).every((l) => new Set(l).size === l.length)).toBe(true)
})

test('a rendered photo shows each of its attributes', () => {
  const draw = (photo: readonly number[]) => rendered(photo, RandomStream.of(1)).data
  const base = [1, 1, 1, 1, 1]
  for (const i of attributes.keys()) {
    const other = base.map((v, j) => (j === i ? levels - 1 : v))
    const [a, b] = [draw(base), draw(other)]
    expect(a.filter((v, k) => Math.abs(v - (b[k] as number)) > 0.3).length).toBeGreaterThan(10)
  }
})

test('prompts hold as many image tokens as a tower gives patches, and the student sees one photo', () => {
  const random = RandomStream.of(3)
  const photo = randomPhoto(random)
  const patches = (pixels.side / pixels.patch) ** 2
  const student = studentPrompt('pixels', photo, random)
  expect([student.ids.length, student.images?.length]).toEqual([patches + 1, 1])
  expect(teacherPrompt('pixels', photo, photo, random).images?.length).toBe(2)
  expect(studentPrompt('tokens', photo, random)).toEqual({ ids: expect.objectContaining({ length: 11 }) })
  expect(photoPrompt('pixels', photo, random).ids.at(-1)).not.toBe(student.ids.at(-1))
})

test('ties count as improvements only in the lax measure, and longer lists are also judged at three actions', () => {
  const photos = [[0, 0, 0, 0, 0]]
  const judge = (list: readonly number[]) => outcomeOf(photos, [{ list, valid: true }])
  expect(judge([])).toMatchObject({ improved: 0, notWorse: 1, gain: 0, length: 0 })
  expect(judge([darker])).toMatchObject({ improved: 0, notWorse: 1 })
  expect(judge([bigger])).toMatchObject({ improved: 1, notWorse: 1 })
  const late = judge([darker, darker, darker, bigger])
  expect([late.improved, late.improved3]).toEqual([1, 0])
  const gain = memorability([1, 0, 0, 0, 0]) / memorability([0, 0, 0, 0, 0]) - 1
  expect(judge([bigger]).gain).toBeCloseTo(gain, 12)
})

test('pairs without a list on one side are left out', () => {
  const [good, empty, broken] = [
    { list: [bigger], valid: true },
    { list: [], valid: true },
    { list: [bigger], valid: false },
  ]
  const prompts = [{ ids: [1] }, { ids: [2] }, { ids: [3] }]
  expect(answeredPairs(prompts, [good, good, good], [good, empty, broken])).toEqual([
    { prompt: { ids: [1] }, teacher: [bigger], student: [bigger] },
  ])
})

test('batches of both forms are what their configs take', async () => {
  for (const form of ['tokens', 'pixels'] as const) {
    const batch = await coachModel(0, { form, repeats: true, steps: 1 }).data.next()
    expect(batch.input_ids?.shape[0]).toBe(64)
    expect(batch.pixel_values?.shape.slice(1)).toEqual(form === 'pixels' ? [3, pixels.side, pixels.side] : undefined)
  }
})

test('ranks correlate, ties sharing theirs', () => {
  expect(rankCorrelation([1, 5, 9], [2, 3, 100])).toBe(1)
  expect(rankCorrelation([3, 2, 1], [1, 2, 3])).toBe(-1)
  // Two pairs of ties: ranks 0.5, 0.5, 2 against 0, 1, 2.
  expect(rankCorrelation([1, 1, 2], [1, 2, 3])).toBeCloseTo(Math.sqrt(3) / 2, 12)
})
