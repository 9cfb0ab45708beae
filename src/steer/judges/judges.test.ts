/** @file Judges: lists of words, classifiers, log-odds, and a language model behind an endpoint that fails half way and talks nonsense. */
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { gaussianRows, plantedModel } from '../testing.ts'
import { classifierJudge, trainTextClassifier } from './classifier.ts'
import { endpointJudge } from './endpoint.ts'
import { functionJudge, judged, type SteeringJudge } from './judge.ts'
import { logOddsJudge } from './log-odds.ts'
import { wordJudge } from './words.ts'

const model = await plantedModel(gaussianRows(12, 16), { tokenizer: true })
afterAll(() => model.dispose())
const ask = (judge: SteeringJudge, ...texts: string[]) =>
  judged(judge, { model, unsteered: model, prompts: texts, texts: texts.map((text) => ({ prompt: 'p', text })) })

describe('words', () => {
  it('counts the share of words of one list less that of the other', async () => {
    const judge = wordJudge(['happy', 'smil*'], ['sad'])
    expect(await ask(judge, 'Happy, smiling and sad: yes!', 'happyish', '')).toEqual([1 / 5, 0, 0])
  })
  it('refuses what can never be found, and words on both sides', () => {
    expect(() => wordJudge(['very happy'])).toThrow('is not one word')
    expect(() => wordJudge([])).toThrow('empty')
    expect(() => wordJudge(['a'], ['a'])).toThrow('on both lists')
  })
})

describe('functions', () => {
  it('refuses a function that gives no numbers', async () => {
    await expect(
      ask(
        functionJudge('odd', () => Number.NaN),
        'a',
      ),
    ).rejects.toThrow('gave NaN for text 0')
    await expect(ask({ ...functionJudge('few', () => 1), score: async () => [1] }, 'a', 'b')).rejects.toThrow('1 scores')
  })
})

describe('classifier', () => {
  const [good, bad, things] = [
    ['fine', 'lovely', 'great'],
    ['awful', 'poor', 'dull'],
    ['film', 'soup', 'chair', 'song'],
  ]
  const examples = things.flatMap((t, k) =>
    [...good.map((w) => ({ w, label: 1 as const })), ...bad.map((w) => ({ w, label: 0 as const }))].flatMap(({ w, label }) => [
      { text: `The ${t} was ${w}`, label },
      { text: `A ${w} ${t} number ${k}`, label },
    ]),
  )
  it('learns the words that tell, and says how well on held-out texts', async () => {
    const classifier = await trainTextClassifier(examples)
    expect(classifier.heldOut.accuracy).toBeGreaterThan(0.9)
    const [up, down] = await ask(classifierJudge(classifier), 'what a lovely day', 'what a dull day')
    expect(up as number).toBeGreaterThan(0.5)
    expect(down as number).toBeLessThan(-0.5)
    expect((await trainTextClassifier(examples)).weights).toEqual(classifier.weights)
  })
  it('refuses to judge where labels mean nothing, and few or one-sided texts', async () => {
    const shuffled = examples.map((e, i) => ({ text: e.text, label: (i % 2) as 0 | 1 }))
    const useless = { ...(await trainTextClassifier(shuffled)), heldOut: { accuracy: 0.5, auroc: 0.5, texts: 10 } }
    expect(() => classifierJudge(useless)).toThrow('cannot judge')
    await expect(trainTextClassifier(examples.filter((e) => e.label === 1))).rejects.toThrow('label 0 has 0')
  })
})

describe('log-odds', () => {
  it('are the difference of the continuations’ logarithms of probability', async () => {
    const [ours] = await ask(logOddsJudge(' 4 9', ' 7'), '2 3')
    const { logits } = await model.run({ ids: [1, 2, 3, 4] })
    const at = (p: number) => Array.from(logits.data.slice(p * 12, (p + 1) * 12) as Float32Array)
    const logP = (p: number, t: number) => (at(p)[t] as number) - Math.log(at(p).reduce((s, x) => s + Math.exp(x), 0))
    expect(ours).toBeCloseTo(logP(2, 4) + logP(3, 9) - logP(2, 7), 4)
  })
})

describe('endpoint', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'actlens-judge-'))
  let asked: string[] = []
  let answer: (text: string, times: number) => { status?: number; content?: string; raw?: string } = () => ({ content: '{"score": 5}' })
  const server = createServer(async (request, response) => {
    let body = ''
    for await (const piece of request) body += piece
    const { text } = JSON.parse(JSON.parse(body).messages[1].content) as { text: string }
    asked.push(text)
    const { status = 200, content, raw } = answer(text, asked.filter((t) => t === text).length)
    response.writeHead(status, { 'content-type': 'application/json' })
    response.end(raw ?? JSON.stringify({ choices: [{ message: { content } }] }))
  })
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  afterAll(async () => {
    await new Promise((done) => server.close(done))
    await rm(folder, { recursive: true, force: true })
  })
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`
  const settings = { url, model: 'm', rubric: 'How polite is it?', folder, wait: 1, attempts: 2 }
  const scoreOf: Record<string, number> = { a: 1, b: 2, c: 3, d: 4 }

  it('goes on after a failure half way, and pays for nothing twice', async () => {
    answer = (text) => (text === 'c' ? { status: 500, raw: 'oops' } : { content: JSON.stringify({ score: scoreOf[text] }) })
    await expect(ask(endpointJudge(settings), 'a', 'b', 'c', 'd')).rejects.toThrow('answered with HTTP 500')
    expect(asked).toEqual(['a', 'b', 'c', 'c'])
    asked = []
    answer = (text) => ({ content: `\`\`\`json\n{"score": ${scoreOf[text]}}\n\`\`\`` })
    expect(await ask(endpointJudge(settings), 'a', 'b', 'c', 'd')).toEqual([1, 2, 3, 4])
    expect(asked).toEqual(['c', 'd'])
    expect((await readdir(folder)).length).toBe(4)
  })
  it('asks again after nonsense, then refuses in a sentence; a wrong key is told at once', async () => {
    asked = []
    answer = (_, times) => ({ content: times === 1 ? 'I would say seven.' : '{"score": 7}' })
    expect(await ask(endpointJudge(settings), 'e')).toEqual([7])
    answer = (text) => ({ content: text === 'f' ? '{"score": 99}' : 'null' })
    await expect(ask(endpointJudge(settings), 'f')).rejects.toThrow('which is no {"score": number} from 0 to 10')
    await expect(ask(endpointJudge(settings), 'g')).rejects.toThrow('answered "null"')
    answer = () => ({ status: 401, raw: '{}' })
    asked = []
    await expect(ask(endpointJudge(settings), 'h')).rejects.toThrow('is the key in OPENAI_API_KEY right')
    expect(asked).toEqual(['h'])
    answer = () => ({ raw: '<html>' })
    await expect(ask(endpointJudge(settings), 'i')).rejects.toThrow('not JSON')
    await expect(ask(endpointJudge({ ...settings, url: 'http://127.0.0.1:9/v1' }), 'j')).rejects.toThrow('could not be reached')
  })
})
