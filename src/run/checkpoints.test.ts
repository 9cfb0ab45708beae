import { mkdtemp, readdir, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { FormatError, UsageError } from '../base/errors.ts'
import { newestCheckpoint } from '../nn/checkpoint.ts'
import { batches, linear, mse, sgd, type TrainOptions, tensorDataset, train } from '../nn/index.ts'
import { squeeze, type Tensor } from '../tensor/index.ts'
import { checkpointFolder } from './checkpoints.ts'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'actlens-checkpoints-'))
})
afterAll(() => rm(folder, { recursive: true, force: true }))

const options = (at: string, steps: number): TrainOptions => {
  const x = Float32Array.from({ length: 24 }, (_, i) => Math.sin(i))
  return {
    model: (inputs, scope) => mse(squeeze(linear(scope, inputs.x as Tensor, 1), 1), inputs.y as Tensor),
    data: batches(
      tensorDataset({ x: { dtype: 'float32', shape: [12, 2], data: x }, y: { dtype: 'float32', shape: [12], data: x.slice(0, 12) } }),
      { batch: 4, seed: 1 },
    ),
    optimizer: sgd({ momentum: 0.9 }),
    rate: 0.05,
    steps,
    checkpoints: { files: checkpointFolder(at), every: 2, keep: 2, resume: 'newest' },
    runtime: { threads: 1 },
  }
}

describe('checkpoints in a folder', () => {
  it('are safetensors files from which training goes on exactly', async () => {
    const [whole, parts] = [join(folder, 'whole'), join(folder, 'parts')]
    const once = await train(options(whole, 8))
    await train(options(parts, 3))
    await train(options(parts, 6))
    const twice = await train(options(parts, 8))
    for (const [name, p] of once.parameters) expect(twice.parameters.get(name).data).toEqual(p.data)
    expect((await readdir(parts)).sort()).toEqual(['step-000000006.safetensors', 'step-000000008.safetensors'])
    const { tensors } = await checkpointFolder(parts).read('step-000000008')
    expect(Object.keys(tensors).sort()).toEqual([
      'parameter/bias',
      'parameter/weight',
      'state/sgd/bias/momentum',
      'state/sgd/weight/momentum',
    ])
  })

  it('ignore what is none, and say so when one is damaged', async () => {
    const at = join(folder, 'damaged')
    await train(options(at, 4))
    await writeFile(join(at, '.step-000000009.safetensors.12.partial'), 'half')
    await writeFile(join(at, 'notes.txt'), 'mine')
    expect(await newestCheckpoint(checkpointFolder(at))).toBe('step-000000004')
    await truncate(join(at, 'step-000000004.safetensors'), 100)
    await expect(train(options(at, 6))).rejects.toThrow(FormatError)
    expect(await checkpointFolder(join(folder, 'nothing')).list()).toEqual([])
    await expect(checkpointFolder(at).read('step-000000007')).rejects.toThrow('does not exist')
    await expect(checkpointFolder(at).read('../x')).rejects.toThrow(UsageError)
  })
})
