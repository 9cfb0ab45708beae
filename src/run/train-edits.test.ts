import { describe, expect, it } from 'vitest'
import { encodeSafetensors, fromBytes, openSafetensors } from '../models/formats/index.ts'
import { batches, type Checkpoint, type CheckpointFiles, NotFiniteError } from '../nn/index.ts'
import { add } from '../sites/edits.ts'
import { assemble } from './load.ts'
import { tinyLlama, tinyModel, tinyTensors } from './testing.ts'
import { adapter, fixedEdits, learntVector, lora, modelRows, trainEdits } from './train-edits.ts'

const texts = Array.from({ length: 6 }, (_, t) => ({ ids: Array.from({ length: 9 }, (_, i) => (t * 7 + i * (t + 3)) % 61) }))
const runtime = { threads: 1 }
const errorOf = (a: ArrayLike<number>, b: ArrayLike<number>) => Math.max(...Array.from(a, (v, i) => Math.abs(v - (b[i] as number))))

function memoryFiles(): CheckpointFiles {
  const held = new Map<string, Checkpoint>()
  return {
    list: async () => [...held.keys()],
    read: async (name) => held.get(name) as Checkpoint,
    write: async (name, c) => {
      held.set(name, structuredClone(c))
    },
    remove: async (name) => {
      held.delete(name)
    },
  }
}

describe('edits are trained on a model', () => {
  it('as low-rank adapters, which are a change of the weights by their product', async () => {
    await using model = await tinyModel()
    const edits = [lora('q.*', { rank: 2, alpha: 4 }), lora('mlp_out.1', { rank: 3 })]
    const data = () => batches(modelRows(model, texts), { batch: 3, seed: 1 })
    const trained = await trainEdits(model, { edits, data: data(), steps: 30, rate: 0.02, seed: 5, runtime })
    expect(Object.keys(trained.parameters)).toEqual(['q.0', 'q.1', 'mlp_out.1', 'q.2'].flatMap((s) => [`${s}.lora_a`, `${s}.lora_b`]))
    expect(trained.losses.at(-1)).toBeLessThan((trained.losses[0] as number) - 0.2)
    const ids = texts[0] as { ids: number[] }
    const before = await model.run(ids)
    const after = await model.with(trained.edits).run(ids)
    expect(errorOf(after.logits.data, before.logits.data)).toBeGreaterThan(0.1)
    // The same change written into the weights.
    const tensors = tinyTensors(tinyLlama)
    for (const [name, site, factor] of [
      ...[0, 1, 2].map((l) => [`model.layers.${l}.self_attn.q_proj.weight`, `q.${l}`, 2] as const),
      ['model.layers.1.mlp.down_proj.weight', 'mlp_out.1', 1] as const,
    ]) {
      const [a, b, w] = [trained.parameters[`${site}.lora_a`]!, trained.parameters[`${site}.lora_b`]!, tensors[name]!]
      const [inside, rank, out] = [a.shape[0] as number, a.shape[1] as number, b.shape[1] as number]
      for (let o = 0; o < out; o++)
        for (let i = 0; i < inside; i++)
          for (let r = 0; r < rank; r++)
            (w.data as Float32Array)[o * inside + i]! += factor * (a.data[i * rank + r] as number) * (b.data[r * out + o] as number)
    }
    const store = await openSafetensors(fromBytes(encodeSafetensors(tensors)))
    await using merged = await assemble({ id: 'merged', hash: async () => 'merged', store, config: tinyLlama }, { threads: 1 })
    expect(errorOf(after.logits.data, (await merged.run(ids)).logits.data)).toBeLessThan(2e-4)
    const again = await model.with(fixedEdits(model, edits, trained.parameters)).run(ids)
    expect(errorOf(again.logits.data, after.logits.data)).toBe(0)
  })

  it('as adapters and vectors, beside edits in force, by any scalar, resumed exactly, with saved values computed again', async () => {
    await using plain = await tinyModel()
    const model = plain.with(add('resid_post.0', new Float32Array(32).fill(0.2), { where: { positions: { from: 1 } } }))
    const loss = { kind: 'logit-difference', tokens: [7, 40] } as const
    const options = { edits: [adapter('resid_post.1', { width: 4 }), learntVector('resid_mid.2')], loss, rate: 0.01, seed: 2, runtime }
    const data = () => batches(modelRows(model, texts, loss), { batch: 2, seed: 4 })
    const whole = await trainEdits(model, { ...options, data: data(), steps: 8 })
    expect(whole.losses.at(-1)).toBeLessThan(whole.losses[0] as number)
    const files = memoryFiles()
    await trainEdits(model, { ...options, data: data(), steps: 3, checkpoints: { files, every: 3 } })
    const rest = await trainEdits(model, { ...options, data: data(), steps: 8, checkpoints: { files, every: 8, resume: 'newest' } })
    expect(rest.losses).toEqual(whole.losses.slice(3))
    for (const [name, p] of Object.entries(whole.parameters)) expect([...rest.parameters[name]!.data]).toEqual([...p.data])
    const again = await trainEdits(model, { ...options, data: data(), steps: 8, saved: 'recompute' })
    for (const [i, l] of again.losses.entries()) expect(l).toBeCloseTo(whole.losses[i] as number, 2)
  })

  it('until a value is not finite: the step, the tensor and the last good checkpoint are named', async () => {
    await using model = await tinyModel()
    const files = memoryFiles()
    const rate = (step: number) => (step < 4 ? 0.01 : 1e39)
    const failed = trainEdits(model, {
      edits: [learntVector('resid_post.0')],
      data: batches(modelRows(model, texts), { batch: 3 }),
      steps: 12,
      rate,
      runtime,
      checkpoints: { files, every: 2 },
    })
    const error = await failed.catch((e: unknown) => e)
    expect(error).toBeInstanceOf(NotFiniteError)
    expect((error as NotFiniteError).step).toBeGreaterThan(4)
    expect((error as NotFiniteError).message).toMatch(/is not finite; resume from the checkpoint/)
  })

  it('refuses what has no adapter', async () => {
    await using model = await tinyModel()
    const options = { data: batches(modelRows(model, texts), { batch: 3 }), steps: 1, rate: 0.1, runtime }
    await expect(trainEdits(model, { ...options, edits: [lora('resid_post.0', { rank: 2 })] })).rejects.toThrow(
      'not the output of one linear layer',
    )
    await expect(trainEdits(model, { ...options, edits: [] })).rejects.toThrow('no edit to train')
    expect(() => lora('q.0', { rank: 0 })).toThrow('positive whole number')
  })
})
