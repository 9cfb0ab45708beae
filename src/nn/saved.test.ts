import { describe, expect, it } from 'vitest'
import { cut, type Tensor } from '../tensor/index.ts'
import { crossEntropy } from './losses.ts'
import { embedding, layerNormed, linear, transformerBlock } from './modules.ts'
import { adamW } from './optimizers.ts'
import { ParameterSet, type Scope } from './parameters.ts'
import { TrainingStep } from './step.ts'
import type { StepOptions } from './step-graph.ts'

const [vocab, width, layers, batch, length] = [23, 16, 4, 4, 12]

const model =
  (marked: boolean) =>
  ({ ids, targets }: Readonly<Record<string, Tensor>>, scope: Scope): Tensor => {
    const mark = (x: Tensor, i: number) => (marked ? cut(x, i) : x)
    let x = embedding(scope.in('embed'), ids as Tensor, vocab, width)
    for (let i = 0; i < layers; i++)
      x = transformerBlock(scope.in(`block${i}`), mark(x, i), { attention: { heads: 2 }, mlp: { hidden: 40 } })
    return crossEntropy(linear(scope.in('head'), layerNormed(scope.in('norm'), mark(x, layers)), vocab), targets as Tensor)
  }

const block = (by: number) => ({
  dtype: 'int64' as const,
  shape: [batch, length],
  data: BigInt64Array.from({ length: batch * length }, (_, i) => BigInt((i * by) % vocab)),
})
const type = { dtype: 'int64' as const, shape: [batch, length] }

async function trained(extra: Partial<StepOptions>) {
  const step = await TrainingStep.of(
    { model: model(true), inputs: { ids: type, targets: type }, parameters: new ParameterSet(), optimizer: adamW(), seed: 3, ...extra },
    { threads: 1 },
  )
  const losses: number[] = []
  for (let i = 1; i <= 4; i++) losses.push((await step.update({ ids: block(5), targets: block(7) }, { rate: 0.01, step: i })).loss)
  const report = step.report
  await step.dispose()
  return { losses, report: report as NonNullable<typeof report>, parameters: step.parameters.copy() }
}

describe('saved values of a training step', () => {
  it('give the same training kept, computed again, on disk and within a budget, which is honoured', async () => {
    const plain = await trained({})
    const kept = await trained({ saved: 'keep' })
    const budget = Math.round(0.6 * kept.report.keptBytes)
    const others = [await trained({ saved: 'recompute' }), await trained({ saved: 'disk' }), await trained({ saved: { budget } })]
    for (const { losses, parameters } of [kept, ...others]) {
      for (const [i, loss] of losses.entries()) expect(loss).toBeCloseTo(plain.losses[i] as number, 5)
      // Adam's first steps have the length of the rate whatever the gradient, so that rounding shows where a gradient is nearly nothing.
      for (const [name, p] of Object.entries(parameters))
        expect(Math.max(...Array.from(p.data, (v, i) => Math.abs(v - (plain.parameters[name]!.data[i] as number))))).toBeLessThan(2e-3)
    }
    expect(plain.losses[3] as number).toBeLessThan(plain.losses[0] as number)
    const [again, disk, within] = others.map((o) => o.report)
    expect(again!.keptBytes).toBeLessThan(0.4 * kept.report.keptBytes)
    expect(disk!.spilledBytes).toBeGreaterThan(0.5 * kept.report.keptBytes)
    expect(within!.keptBytes).toBeLessThan(1.15 * budget)
    expect(within!.spilledBytes).toBe(0)
  })

  it('are refused where the model has no marks', async () => {
    await expect(trained({ saved: 'recompute', model: model(false) })).rejects.toThrow('put x = cut(x, i)')
    await expect(trained({ saved: { budget: 0 } })).rejects.toThrow('positive number of bytes')
  })
})
