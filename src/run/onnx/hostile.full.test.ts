/** @file Ten thousand damaged ONNX files: each runs or is refused in a sentence. */
import { expect, test } from 'vitest'
import { tryDamaged } from './hostile.ts'

test('ten thousand damaged files, seed 2', async () => {
  const { ran, refused, wrong } = await tryDamaged(10_000, 2)
  console.log(`${ran} of 10000 damaged files ran, ${refused} were refused`)
  expect(wrong).toEqual([])
}, 1_200_000)
