/** @file Jobs of exploration: activations to disk against the bare forward pass, and probes. */
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { capture } from '../../dist/explore/index.js'
import { fitLinear } from '../../dist/probe/index.js'
import { alternate } from '../lib.mjs'
import { row } from '../models.mjs'
import { plainModel } from '../plain.mjs'

const context = 128
const rowsAtOnce = 8
/** Tokens of J12, as the PyTorch side takes them. */
const tokens = { stories15M: 65536 }
const fewTokens = 8192

/** J12: one residual site of many tokens to float32 shards, against the same passes of plain ONNX Runtime whose outputs are dropped. */
async function captureJob({ model, facts, file, options }) {
  const layer = (model.spec.layers >> 1) - 1
  const total = model.origin.id === 'embedded' ? tokens.stories15M : fewTokens
  const ids = Array.from({ length: rowsAtOnce }, (_, b) => row(model.spec.vocab, context, b))
  const documents = Array.from({ length: total / context }, (_, i) => ids[i % rowsAtOnce])
  const plain = await plainModel(facts, { file, threads: options.threads, taps: [layer], layers: layer + 1 })
  const home = mkdtempSync(join(tmpdir(), 'actlens-bench-'))
  let round = 0
  let manifest
  const rate = async (work) => {
    const t = performance.now()
    await work()
    return total / ((performance.now() - t) / 1000)
  }
  const rows = await alternate(
    [
      {
        name: 'plain ONNX Runtime, nothing kept',
        unit: 'tok/s',
        run: () =>
          rate(async () => {
            for (let at = 0; at < total; at += rowsAtOnce * context) await plain.forward(ids)
          }),
      },
      {
        name: 'actlens capture',
        unit: 'tok/s',
        run: () =>
          rate(async () => {
            const out = join(home, String(round++))
            manifest = (
              await capture(model, { data: documents, sites: `resid_post.${layer}`, out, context, batchTokens: rowsAtOnce * context })
            ).manifest
            rmSync(out, { recursive: true })
          }),
        checks: () => ({
          tokens: manifest.tokens,
          bytesPerToken: Math.round(manifest.shards.reduce((n, s) => n + s.bytes, 0) / manifest.tokens),
          peakRssMB: Math.round(process.resourceUsage().maxRSS / 1024),
        }),
      },
    ],
    { ...options, warmups: 1, rounds: Math.min(options.rounds, 5) },
  )
  await plain.release()
  rmSync(home, { recursive: true, force: true })
  return rows
}

const [examples, width, folds] = [10_000, 768, 5]

/** Features of J17: those of the scikit-learn side where ACTLENS_PROBE_DATA names its folder, else planted ones of the same shape. */
function probeData() {
  const folder = process.env.ACTLENS_PROBE_DATA
  if (folder) {
    const bytes = readFileSync(join(folder, 'probe_x.10000x768.f32'))
    if (statSync(join(folder, 'probe_y.10000.u8')).size !== examples) throw new Error(`${folder} holds labels of another size.`)
    return { data: new Float32Array(bytes.buffer, bytes.byteOffset, examples * width), y: readFileSync(join(folder, 'probe_y.10000.u8')) }
  }
  let state = 1
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return (state + 0.5) / 2 ** 32
  }
  const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform())
  const data = Float32Array.from({ length: examples * width }, normal)
  const direction = Float64Array.from({ length: width }, () => normal() / Math.sqrt(width))
  const y = Uint8Array.from({ length: examples }, (_, i) => {
    let s = 0.6 * normal()
    for (let j = 0; j < width; j++) s += direction[j] * data[i * width + j]
    return s > 0 ? 1 : 0
  })
  return { data, y }
}

/** J17: five folds of an L2 logistic probe (C = 1, not standardised); fold i holds out rows [2000 i, 2000 i + 2000). */
async function probeJob({ options }) {
  const { data, y } = probeData()
  const x = { dtype: 'float32', shape: [examples, width], data }
  const foldOf = (i) => Math.floor((i * folds) / examples)
  const targets = Float64Array.from(y, (v) => (v ? 1 : -1))
  const problems = Array.from({ length: folds }, (_, f) => ({
    loss: 'logistic',
    weights: Float64Array.from(targets, (_, i) => (foldOf(i) === f ? 0 : 1)),
    targets,
    outputs: 1,
    l2: 1,
    l1: 0,
    standardise: false,
  }))
  let fits
  const accuracy = () => {
    let right = 0
    for (let i = 0; i < examples; i++) {
      const { weights, bias } = fits[foldOf(i)]
      let s = bias[0]
      for (let j = 0; j < width; j++) s += weights[j] * data[i * width + j]
      if (s > 0 === targets[i] > 0) right++
    }
    return right / examples
  }
  return alternate(
    [
      {
        name: 'actlens',
        run: async () => {
          fits = await fitLinear(x, problems)
        },
        checks: () => ({ accuracy: accuracy(), passes: Math.max(...fits.map((f) => f.passes)) }),
      },
    ],
    { ...options, warmups: 1, rounds: Math.min(options.rounds, 7) },
  )
}

/** The jobs. */
export const exploreJobs = {
  J12: { title: 'capture of one residual site to disk, 8x128', single: true, run: captureJob },
  J17: { title: 'logistic probe, 10000x768, 5 folds', single: true, embeddedOnly: true, run: probeJob },
}
