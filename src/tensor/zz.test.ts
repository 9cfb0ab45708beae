import { it } from 'vitest'
import * as ort from 'onnxruntime-node'
import { readFileSync, readdirSync } from 'node:fs'
import { Program } from './program.ts'
import { SessionCache } from './session-cache.ts'
import { arrayOf, stream } from './ops/testing/check.ts'
import { differentiate } from './grad.ts'
import * as op from './ops/index.ts'
import type { Tensor } from './tensor.ts'
const L = 6, D = 288, H = 6, F = 768, V = 32000, B = 8, P = 128
function model() {
  const ids = op.input('ids', 'int64', ['batch', 'pos']), targets = op.input('targets', 'int64', ['batch', 'pos'])
  const slots = op.input('slots', 'int64', ['batch', 'pos']), last = op.input('last', 'int32', ['batch']), total = op.input('total', 'int32', [])
  const n = stream(1); const ws: Tensor[] = []
  const w = (name: string, shape: number[], s = 0.05) => { const data = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => s * (n() - 0.5)); const t = op.weight({ name, dtype: 'float32', shape, place: { key: name, data: new Uint8Array(data.buffer) } }); ws.push(t); return t }
  const cos = op.constant('float32', [256, 24], Float32Array.from({ length: 6144 }, (_, i) => Math.cos(Math.floor(i / 24) / 10000 ** ((i % 24) / 24)))), sin = op.constant('float32', [256, 24], Float32Array.from({ length: 6144 }, (_, i) => Math.sin(Math.floor(i / 24) / 10000 ** ((i % 24) / 24))))
  const table = w('table', [V, D])
  let h = op.gather(table, ids); const resid: Tensor[] = []
  for (let i = 0; i < L; i++) {
    const a = op.rmsNorm(h, w(`n${i}`, [D], 2), 1e-5)
    const lin = (x: Tensor, name: string, o: number, inn: number) => op.matmul(x, w(name, [o, inn]), { transB: true })
    const z = op.attention({ q: lin(a, `q${i}`, D, D), k: lin(a, `k${i}`, D, D), v: lin(a, `v${i}`, D, D), lastSlot: last, total, slots, rotary: { cos, sin, positions: slots } }, { heads: H, kvHeads: H, headDim: D / H, scale: 1 / Math.sqrt(48), interleaved: true, explicitPositions: false }).z
    h = op.add(h, lin(z, `o${i}`, D, D))
    const b = op.rmsNorm(h, w(`m${i}`, [D], 2), 1e-5)
    h = op.add(h, lin(op.mul(op.silu(lin(b, `g${i}`, F, D)), lin(b, `u${i}`, F, D)), `d${i}`, D, F))
    resid.push(h)
  }
  const logits = op.matmul(op.rmsNorm(h, w('final', [D], 2), 1e-5), table, { transB: true })
  const loss = op.mean(op.gatherElements(op.logSoftmax(logits), op.unsqueeze(targets, 2), 2)).neg()
  return { loss, ws, resid, logits }
}
const feeds: any = { ids: arrayOf('int64', [B, P], Array.from({ length: B * P }, (_, i) => (i * 7919) % V)), targets: arrayOf('int64', [B, P], Array.from({ length: B * P }, (_, i) => (i * 104729) % V)), slots: arrayOf('int64', [B, P], Array.from({ length: B * P }, (_, i) => i % P)), last: arrayOf('int32', [B], new Array(B).fill(P - 1)), total: arrayOf('int32', [], [P]) }
async function time(p: Program<any>, n = 5) { const f = Object.fromEntries(Object.entries(feeds).filter(([k]) => p.inputs.has(k))) as any; const t0 = performance.now(); await p.run(f); const first = performance.now() - t0; const ts: number[] = []; for (let i = 0; i < n; i++) { const t = performance.now(); await p.run(f); ts.push(performance.now() - t) } return `${Math.min(...ts).toFixed(0)} ms (first ${first.toFixed(0)})` }
it('x', async () => {
  const real = ort.InferenceSession.create
  let prof = ''
  ;(ort.InferenceSession as any).create = (m: Uint8Array, o: any) => (real as any).call(ort.InferenceSession, m, { ...o, ...(prof ? { enableProfiling: true, profileFilePrefix: prof } : {}) })
  const cache = new SessionCache(4e9); const options = { device: 'cpu', cache, threads: 2 } as const
  const m = model()
  const out: string[] = []
  out.push(`forward loss ${await time(await Program.of({ loss: m.loss }, options))}`)
  const t0 = performance.now(); const d = differentiate({ of: m.loss, at: m.ws }); out.push(`differentiate ${(performance.now() - t0).toFixed(0)} ms`)
  const gs = Object.fromEntries(d.grads.map((g, i) => [`g${i}`, op.sum(op.slice(op.reshape(g, [-1]), 0, 0, 1))]))
  const t1 = performance.now(); prof = process.env.PROF ? '/tmp/probe/prof' : ''
  const p = await Program.of({ loss: d.of, ...gs }, options); out.push(`lower ${(performance.now() - t1).toFixed(0)} ms`)
  out.push(`forward+backward all weights ${await time(p)}`)
  if (prof) { await cache.clear() }
  prof = ''
  const logit = op.sum(op.slice(op.slice(m.logits, 1, -1), 2, 5, 6))
  out.push(`forward logits ${await time(await Program.of({ l: op.sum(m.logits, [0, 1, 2]) }, options))}`)
  const mid = differentiate({ of: logit, at: [m.resid[2]!] }); out.push(`mid site grad ${await time(await Program.of({ g: mid.grads[0]! }, options))}`)
  const all = differentiate({ of: logit, at: m.resid }); out.push(`all resid grads ${await time(await Program.of(Object.fromEntries(all.grads.map((g, i) => [`g${i}`, g])), options))}`)
  console.log(out.join('\n'))
  if (process.env.PROF) {
    const f = readdirSync('/tmp/probe').filter((x) => x.startsWith('prof')).sort().at(-1)!
    const ev = JSON.parse(readFileSync(`/tmp/probe/${f}`, 'utf8')) as any[]
    const sums = new Map<string, [number, number]>()
    for (const e of ev) if (e.cat === 'Node' && e.name.endsWith('kernel_time')) { const k = `${e.args.op_name} ${JSON.stringify(e.args.input_type_shape).replaceAll('"', '').slice(0, 110)}`; const s = sums.get(k) ?? [0, 0]; s[0] += e.dur; s[1]++; sums.set(k, s) }
    const runs = 6
    const tot = [...sums.values()].reduce((a, b) => a + b[0], 0) / runs / 1000
    console.log('total', tot); for (const [k, [d, c]] of [...sums].sort((a, b) => b[1][0] - a[1][0]).slice(0, 45)) console.log((d / runs / 1000).toFixed(2), c / runs, k)
  }
}, 600000)
