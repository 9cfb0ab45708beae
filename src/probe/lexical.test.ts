import { expect, test } from 'vitest'
import { lexicalAudit } from './lexical.ts'

const animals = ['cat', 'dog', 'fox', 'hen', 'cow', 'pig', 'owl', 'bee', 'ant', 'elk']

test('wording that gives the class away is told', async () => {
  const texts = animals.flatMap((a) => [`the ${a} is truly nice`, `a ${a} seems rather bad today`])
  const { auroc, warnings } = await lexicalAudit(
    texts,
    texts.map((_, i) => (i % 2) as 0 | 1),
    { groups: texts.map((_, i) => String(i >> 1)) },
  )
  expect(auroc['bag of words'].value).toBe(1)
  expect(auroc.length.value).toBe(1)
  expect(auroc['first two words'].value).toBe(1)
  expect(warnings.join(' ')).toMatch(/bag of words alone/)
})

test('classes that use the same words equally often are not told apart', async () => {
  // The label is an exclusive or of two words: no word alone says anything.
  const texts: string[] = []
  const labels: (0 | 1)[] = []
  for (const place of animals)
    for (const [i, a] of ['red', 'blue'].entries())
      for (const [j, b] of ['old', 'new'].entries()) {
        texts.push(`${a} ${place} ${b}`)
        labels.push((i ^ j) as 0 | 1)
      }
  const { auroc, warnings } = await lexicalAudit(texts, labels, { groups: texts.map((t) => t.split(' ')[1] as string) })
  expect(auroc['bag of words'].value).toBeLessThan(0.6)
  expect(warnings).toEqual([])
})

test('labels of one class and lists of different length are refused', async () => {
  await expect(lexicalAudit(['a', 'b'], [1, 1])).rejects.toThrow(/nothing to tell apart/)
  await expect(lexicalAudit(['a'], [1, 0])).rejects.toThrow(/one for each/)
})
