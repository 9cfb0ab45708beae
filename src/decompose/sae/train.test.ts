import { existsSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import type { NDArray } from '../../base/types.ts'
import type { SaeOptions } from './recipe.ts'
import type { RowStream } from './rows.ts'
import { goldenRoot, jsonOf, tensorsOf } from './testing.ts'
import { type SaeProgress, trainSae } from './train.ts'

const root = goldenRoot('sae-training')

interface Golden {
  readonly steps: readonly { readonly loss: number; readonly grad_norm: number; readonly losses: Record<string, number> }[]
}

/** Recorded batches, one after the other. */
async function recordedRows(): Promise<{ stream: RowStream; batch: number }> {
  const { batches } = await tensorsOf(`${root}batches.safetensors`)
  const [, batch, width] = (batches as NDArray).shape as [number, number, number]
  const data = (batches as NDArray<Float32Array>).data
  const stream: RowStream = {
    width,
    facts: {},
    async *rows(_, skip) {
      yield data.subarray(skip * width)
    },
  }
  return { stream, batch }
}

const transposedNames: Readonly<Record<string, string>> = {
  'encoder.weight': 'W_enc',
  'decoder.weight': 'W_dec',
  'encoder.bias': 'b_enc',
  bias: 'b_dec',
  decoder_bias: 'b_dec',
  gate_bias: 'b_gate',
  mag_bias: 'b_mag',
}

function ours(name: string, a: NDArray<Float32Array>): [string, NDArray<Float32Array>] {
  const to = transposedNames[name] ?? name
  if (!name.endsWith('.weight')) return [to, a]
  const [r, c] = a.shape as [number, number]
  const data = new Float32Array(a.data.length)
  for (let i = 0; i < r; i++) for (let j = 0; j < c; j++) data[j * r + i] = a.data[i * c + j] as number
  return [to, { dtype: 'float32', shape: [c, r], data }]
}

const plain: SaeOptions = { scale: 'none', rate: 3e-3, warmup: 0, decay: 0, sparsityWarmup: 0, deadAfter: 1000 }
const free = { ...plain, decoder: 'free' as const, subtractsBias: true }
const unit = { ...plain, decoder: 'unit' as const, subtractsBias: true }
const without = <T extends object>(o: T, ...names: (keyof T)[]) =>
  Object.fromEntries(Object.entries(o).filter(([n]) => !names.includes(n as keyof T)))
const keeps = (o: SaeOptions) => without(o, 'sparsityWarmup') as SaeOptions

/** Recorded trainings and the settings that mean the same here. */
const cells: Readonly<Record<string, SaeOptions>> = {
  'saelens/standard': { ...free, kind: 'standard', sparsity: 0.5 },
  'saelens/topk': { ...keeps(free), kind: 'topk', k: 6, aux: 1 },
  'saelens/topk-dead': { ...keeps(free), kind: 'topk', k: 6, aux: 0.5 },
  'saelens/batchtopk-dead': { ...keeps(free), kind: 'batchtopk', k: 6.5, aux: 1 },
  'saelens/matryoshka-dead': { ...keeps(free), kind: 'matryoshka', k: 6, aux: 1, groups: [8, 24, 40] },
  'saelens/jumprelu-step': { ...free, kind: 'jumprelu', sparsity: 0.7, bandwidth: 0.4 },
  'saelens/gated': { ...free, kind: 'gated', sparsity: 0.3 },
  'dictionary_learning/topk-dead': { ...keeps(unit), kind: 'topk', k: 6, aux: 0.5, auxK: 24 },
  'dictionary_learning/batchtopk-dead': { ...keeps(unit), kind: 'batchtopk', k: 6, aux: 0.5, auxK: 24 },
  'dictionary_learning/standard': { ...unit, kind: 'standard', sparsity: 0.2, clip: false },
  'dictionary_learning/gated': { ...unit, kind: 'gated', sparsity: 0.2, clip: false, betas: [0, 0.999] },
}

describe.skipIf(!existsSync(root))('three steps are those of the library', () => {
  for (const [cell, options] of Object.entries(cells))
    it(cell, async () => {
      const { stream, batch } = await recordedRows()
      const golden = await tensorsOf(`${root}${cell}/golden.safetensors`)
      const { steps } = jsonOf(`${root}${cell}/golden.json`) as Golden
      const of = (prefix: string) =>
        Object.fromEntries(
          Object.entries(golden)
            .filter(([n]) => n.startsWith(prefix))
            .map(([n, a]) => ours(n.slice(prefix.length), a)),
        )
      const dead = golden['dead.0'] ?? golden['dead_before.0']
      const start: Record<string, NDArray<Float32Array>> = {
        ...of('init.'),
        ...(dead ? { steps_since_fired: { ...dead, data: dead.data.map((v) => 5000 * v) } } : {}),
      }
      // TopK of dictionary_learning first puts b_dec at the median of the batch.
      if (golden['b_dec.geometric_median']) delete start.b_dec
      const width = (start.W_dec as NDArray).shape[0] as number
      const seen: SaeProgress[] = []
      const { parameters } = await trainSae({
        ...options,
        width,
        rows: stream,
        batch,
        steps: 3,
        start,
        threads: 1,
        onStep: (p) => seen.push(p),
      })
      for (const [i, at] of steps.entries())
        expect(Math.abs((seen[i] as SaeProgress).loss - at.loss) / at.loss).toBeLessThan(i === 0 ? 1e-5 : 1e-4)
      if (cell.startsWith('saelens'))
        expect((seen[0] as SaeProgress).gradientNorm / (steps[0] as { grad_norm: number }).grad_norm).toBeCloseTo(1, 4)
      for (const [name, want] of Object.entries(of('step3.'))) {
        const got = parameters.get(name).data
        const worst = want.data.reduce((m, v, i) => Math.max(m, Math.abs(v - (got[i] as number))), 0)
        expect(worst, name).toBeLessThan(2e-4)
      }
    })
})
