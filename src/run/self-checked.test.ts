import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { temporaryFolder } from '../models/formats/testing.ts'
import { load } from './open.ts'
import { tinyLlama, tinyTensors } from './testing.ts'
import { saveDecoder } from './train-decoder.ts'

beforeEach(() => vi.stubEnv('ACTLENS_HOME', temporaryFolder()))
afterEach(() => vi.unstubAllEnvs())

const checkedFiles = () => readdirSync(join(process.env.ACTLENS_HOME as string, 'cache', 'checked'))

test('a model is checked when it is first loaded, and the result is remembered while its files stay', async () => {
  const folder = temporaryFolder()
  const tensors = tinyTensors(tinyLlama) as Parameters<typeof saveDecoder>[1]['tensors']
  await saveDecoder(folder, { config: tinyLlama, tensors })
  const first = await load(folder, { threads: 1 })
  const said = first.origin.checks.join('; ')
  expect(said).toMatch(/residual stream is the sum/)
  expect(said).toMatch(/attention rows sum to one/)
  expect(said).toMatch(/z of the first block is recomputed/)
  const [file] = checkedFiles()
  writeFileSync(join(process.env.ACTLENS_HOME as string, 'cache', 'checked', file as string), JSON.stringify({ said: ['remembered'] }))
  expect((await load(folder, { threads: 1 })).origin.checks).toContain('remembered')
  expect((await load(folder, { threads: 1, selfCheck: false })).origin.checks.join()).not.toMatch(/remembered|residual/)
  await saveDecoder(folder, { config: tinyLlama, tensors })
  expect((await load(folder, { threads: 1 })).origin.checks).not.toContain('remembered')
  expect(checkedFiles()).toHaveLength(2)
})

test('weights that are not numbers are refused at load, by the site where they show', async () => {
  const folder = temporaryFolder()
  const tensors = tinyTensors(tinyLlama) as Parameters<typeof saveDecoder>[1]['tensors']
  tensors['model.layers.1.mlp.down_proj.weight']?.data.fill(Number.NaN)
  await saveDecoder(folder, { config: tinyLlama, tensors })
  await expect(load(folder, { threads: 1 })).rejects.toThrow(/self-check.*not finite/)
})
