/** @file Every family's model written as an ONNX file: the plain runtime gives out what the model does. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import type { NDArray } from '../../base/types.ts'
import { openSafetensors } from '../../models/formats/index.ts'
import { getRuntime } from '../../tensor/index.ts'
import { load } from '../open.ts'

const roots = ['../../../../shared/goldens/', '../../../test/goldens/'].map((p) => fileURLToPath(new URL(p, import.meta.url)))
const folders = roots
  .filter((root) => existsSync(root))
  .flatMap((root) => readdirSync(root).map((name) => join(root, name)))
  .filter((folder) => ['config.json', 'golden.safetensors', 'model.safetensors'].every((f) => existsSync(join(folder, f))))

const inputs = ['input_ids', 'attention_mask', 'token_type_ids', 'pixel_values', 'decoder_input_ids']

describe('exports', () => {
  for (const folder of folders)
    it(`${folder.split('/').at(-1)} gives the same outputs`, { timeout: 60_000 }, async () => {
      const place = mkdtempSync(join(tmpdir(), 'actlens-onnx-'))
      const model = await load(folder, { threads: 1, selfCheck: false })
      const golden = await openSafetensors(join(folder, 'golden.safetensors'))
      try {
        const written = await model.export(join(place, 'model.onnx'))
        const given: Record<string, NDArray> = {}
        for (const name of inputs) if (golden.has(name)) given[name] = await golden.readRaw(name)
        const { shape } = given.input_ids ?? { shape: [] }
        const filled = (value: bigint): NDArray => ({
          dtype: 'int64',
          shape,
          data: new BigInt64Array((shape[0] ?? 0) * (shape[1] ?? 0)).fill(value),
        })
        const runtime = await getRuntime()
        const session = await runtime.compile(readFileSync(written.path), { device: 'cpu', threads: 1, memory: new Map() })
        const feeds = written.inputs.map((name) => {
          const v = given[name] ?? filled(name === 'attention_mask' ? 1n : 0n)
          return [name, runtime.tensor(v.dtype as 'float32', v.shape, v.data as Float32Array)] as const
        })
        const out = await session.run(Object.fromEntries(feeds), Object.fromEntries(written.outputs.map((o) => [o, null])))
        // A state-space model has no mask to hide columns in front, so its file takes none.
        const ours = await model.run(Object.fromEntries(Object.entries(given).filter(([name]) => written.inputs.includes(name))))
        // Places without a token hold nothing that anyone reads.
        const mask = (written.inputs.includes('attention_mask') ? given.attention_mask?.data : undefined) as BigInt64Array | undefined
        for (const name of written.outputs) {
          const wanted = name === 'logits' ? ours.logits : ours.taps[name]
          const values = out[name]?.data as Float32Array
          const width = wanted?.shape.at(-1) as number
          const masked = mask && !given.decoder_input_ids && wanted?.shape.length === 3 && mask.length === wanted.data.length / width
          let [error, top] = [0, 0]
          for (const [i, w] of (wanted?.data ?? []).entries()) {
            if (masked && mask[Math.floor(i / width)] === 0n) continue
            top = Math.max(top, Math.abs(w))
            error = Math.max(error, Math.abs(w - (values[i] as number)) || (Number.isNaN(values[i]) ? 1 : 0))
          }
          expect(top).toBeGreaterThan(0)
          expect(error / top, name).toBeLessThan(1e-4)
        }
        await session.release()
      } finally {
        await golden.close()
        await model.dispose()
        rmSync(place, { recursive: true })
      }
    })
})
