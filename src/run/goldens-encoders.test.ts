/** Encoders and encoder–decoders against values that PyTorch recorded, on traced graphs. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { ConfigReader } from '../models/config.ts'
import { encoderDecoderFamilies, encoderFamilies } from '../models/families/encoders.ts'
import { openSafetensors, type WeightStore } from '../models/formats/index.ts'
import type { TracedModel } from '../models/traced.ts'
import { pixelsName, traceEncoder } from '../models/trunks/encoder.ts'
import { sourceNames, traceEncoderDecoder } from '../models/trunks/encoder-decoder.ts'
import { parametersOf, type ReadSpec, weightsOf } from '../models/weights.ts'
import { rewriteModel } from '../sites/rewrite.ts'
import { input, Program, SessionCache } from '../tensor/index.ts'
import { batchOfTensors, stepFeeds } from './batch.ts'

const shared = fileURLToPath(new URL('../../../shared/goldens/', import.meta.url))
const own = fileURLToPath(new URL('../../test/goldens/', import.meta.url))
const roots = [shared, own, ...(process.env.ACTLENS_GOLDENS ? [process.env.ACTLENS_GOLDENS] : [])]
const configOf = (folder: string) => JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'))
const folders = roots
  .filter((root) => existsSync(root))
  .flatMap((root) => readdirSync(root).map((name) => ({ name, folder: join(root, name) })))
  .filter(({ folder }) => ['config.json', 'golden.safetensors'].every((f) => existsSync(join(folder, f))))
  .map((f) => ({ ...f, type: configOf(f.folder).model_type as string }))

/** Sites as a program that reads them, on rows without padding. */
async function values(traced: Pick<TracedModel, 'sites' | 'inner' | 'logits'>, taps: string[], feeds: Record<string, NDArray>) {
  const model: TracedModel = { ...traced, caches: [], lastIndex: input('unused', 'int64', ['batch']) }
  const graph = rewriteModel(model, { edits: [], taps, uses: { logits: true, caches: false } })
  const program = await Program.of(Object.fromEntries(graph.taps), { cache: new SessionCache(1e9), device: 'cpu', threads: 2 })
  return program.run(feeds)
}

/** One row of a batch, without its padding. */
const rowFeeds = (batch: ReturnType<typeof batchOfTensors>, row: number) =>
  stepFeeds([batch.rows[row] as number[]], [0], batch.positions && [batch.positions[row] as number[]]).feeds

/** Compares one row of a recorded tensor, at the columns that hold tokens. */
function errorOf(ours: NDArray, want: NDArray<Float32Array>, row: number, columns: readonly (readonly number[])[]): number {
  const shape = want.shape.slice(1)
  // Axes from the right: the last `columns.length` that count tokens.
  const picks = shape.map((n, i) => columns[i] ?? Array.from({ length: n }, (_, k) => k))
  let [error, top, n] = [0, 0, 0]
  const walk = (axis: number, offset: number): void => {
    if (axis === shape.length) {
      const w = want.data[offset] as number
      top = Math.max(top, Math.abs(w))
      error = Math.max(error, Math.abs(w - Number(ours.data[n++])))
      return
    }
    for (const i of picks[axis] as readonly number[]) walk(axis + 1, offset * (shape[axis] as number) + i)
  }
  walk(0, row)
  expect(n).toBe(ours.data.length)
  return error / top
}

async function open(folder: string, family: ReadSpec, context: number) {
  const store = await openSafetensors(join(folder, 'model.safetensors'))
  const weights = await weightsOf(store, {})
  return { weights, parameters: parametersOf(family, weights, context), golden: await openSafetensors(join(folder, 'golden.safetensors')) }
}

const sitesOf = (golden: WeightStore) =>
  [...golden.tensors.keys()].filter((n) => /^((encoder|decoder)\.)?(resid|attn|mlp|cross|logits|last_hidden)/.test(n))
const read = async (golden: WeightStore, name: string) => (await golden.readRaw(name)) as NDArray<Float32Array>

describe.each(folders.filter((f) => Object.hasOwn(encoderFamilies, f.type)))('$name', ({ folder, type }) => {
  it('has the recorded values at every site', async () => {
    const spec = encoderFamilies[type]!(new ConfigReader(configOf(folder)))
    const { weights, parameters, golden } = await open(folder, spec, spec.maxPositions)
    const traced = traceEncoder(spec, parameters)
    weights.checkAllRead(spec)
    const sites = sitesOf(golden)
    const wrong: unknown[] = []
    if (spec.input.kind === 'pixels') {
      const out = await values({ ...traced, logits: traced.output }, sites, {
        [pixelsName]: await golden.readRaw(pixelsName),
        ...parameters.feeds,
      })
      for (const s of sites)
        for (let row = 0; row < 2; row++) {
          const want = await read(golden, s)
          const part = out[s]!.data.subarray((row * want.data.length) / 2, ((row + 1) * want.data.length) / 2)
          const e = errorOf({ ...out[s]!, data: part } as NDArray, want, row, [])
          if (!(e < 1e-4)) wrong.push([s, row, e])
        }
    } else {
      const tensors = { input_ids: await golden.readRaw('input_ids'), attention_mask: await golden.readRaw('attention_mask') }
      const given = golden.has('position_ids') ? { position_ids: await golden.readRaw('position_ids') } : {}
      const batch = batchOfTensors({ ...tensors, ...given })
      for (let row = 0; row < 3; row++) {
        const out = await values({ ...traced, logits: traced.output }, sites, { ...rowFeeds(batch, row), ...parameters.feeds })
        const columns = batch.columns[row]!
        for (const s of sites) {
          const at = s.startsWith('attn_probs') ? [undefined!, columns, columns] : [columns]
          const e = errorOf(out[s]!, await read(golden, s), row, at)
          if (!(e < 1e-4)) wrong.push([s, row, e])
        }
      }
      // Shorter rows are hidden behind a mask in a batch.
      const whole = stepFeeds(batch.rows, [0, 0, 0], batch.positions).feeds
      const out = await values({ ...traced, logits: traced.output }, ['last_hidden_state'], { ...whole, ...parameters.feeds })
      const alone = await values({ ...traced, logits: traced.output }, ['last_hidden_state'], {
        ...rowFeeds(batch, 1),
        ...parameters.feeds,
      })
      const width = 12 * spec.dModel
      const other = alone.last_hidden_state!.data as Float32Array
      const first = (out.last_hidden_state!.data as Float32Array).subarray(width, width + other.length)
      expect(other.reduce((e, x, i) => Math.max(e, Math.abs(x - (first[i] as number))), 0)).toBeLessThan(1e-4)
    }
    expect(wrong).toEqual([])
  })
})

describe.each(folders.filter((f) => Object.hasOwn(encoderDecoderFamilies, f.type)))('$name', ({ folder, type }) => {
  it('has the recorded values at every site of both stacks', async () => {
    const spec = encoderDecoderFamilies[type]!(new ConfigReader(configOf(folder)))
    const { weights, parameters, golden } = await open(folder, spec, spec.maxPositions)
    const traced = traceEncoderDecoder(spec, parameters)
    weights.checkAllRead(spec)
    const source = batchOfTensors({ input_ids: await golden.readRaw('input_ids'), attention_mask: await golden.readRaw('attention_mask') })
    const target = batchOfTensors({ input_ids: await golden.readRaw('decoder_input_ids') })
    const sites = sitesOf(golden)
    const wrong: unknown[] = []
    for (let row = 0; row < 3; row++) {
      const from = rowFeeds(source, row)
      const { input_ids, ...feeds } = rowFeeds(target, row)
      const out = await values(traced, sites, {
        ...feeds,
        [sourceNames.decoderIds]: input_ids!,
        [sourceNames.ids]: from.input_ids!,
        [sourceNames.slots]: from.slots!,
        [sourceNames.lastSlot]: from.last_slot!,
        ...parameters.feeds,
      })
      const [far, near] = [source.columns[row]!, target.columns[row]!]
      for (const s of sites) {
        const queries = s.startsWith('encoder') ? far : near
        const keys = s.startsWith('decoder.attn') ? near : far
        const e = errorOf(out[s]!, await read(golden, s), row, s.includes('probs') ? [undefined!, queries, keys] : [queries])
        if (!(e < 1e-4)) wrong.push([s, row, e])
      }
    }
    expect(wrong).toEqual([])
  })
})
