/** @file Measuring: contenders take turns in one process, medians and ratios are reported, raw samples are kept. */
import { execFileSync } from 'node:child_process'
import os from 'node:os'

/** What the numbers belong to. */
export function machine() {
  const cpu = os.cpus()[0]
  let flags = []
  try {
    const text = execFileSync('lscpu', { encoding: 'utf8' })
    flags = ['avx2', 'fma', 'avx512f', 'avx512_vnni', 'amx_tile'].filter((f) => new RegExp(`\\b${f}\\b`).test(text))
  } catch {
    // Not Linux: the model name has to do.
  }
  return {
    cpu: cpu?.model ?? 'unknown',
    cores: os.availableParallelism(),
    simd: flags,
    memoryGiB: Math.round(os.totalmem() / 2 ** 30),
    kernel: `${os.type()} ${os.release()}`,
    node: process.version,
    memoryBandwidthGBs: bandwidth(),
  }
}

/** Gigabytes a second of a copy, best of five: decoding is bound by it. */
function bandwidth() {
  const a = new Float64Array(8e6)
  const b = new Float64Array(8e6).fill(1)
  let best = Number.POSITIVE_INFINITY
  for (let i = 0; i < 5; i++) {
    const t = performance.now()
    a.set(b)
    best = Math.min(best, performance.now() - t)
  }
  return Number(((2 * a.byteLength) / best / 1e6).toFixed(1))
}

export const median = (xs) => xs.toSorted((a, b) => a - b)[xs.length >> 1]

/** Median and inter-quartile range. */
export function summary(samples) {
  const s = samples.toSorted((a, b) => a - b)
  return { median: median(s), iqr: s[Math.floor(s.length * 0.75)] - s[Math.floor(s.length * 0.25)], n: s.length }
}

/**
 * Times contenders in turns (A B C A B C …).
 * @param contenders `{ name, run }`, the first is the one that ratios refer to; `run` may return a number to be used instead of its own time.
 */
export async function alternate(contenders, { warmups = 3, rounds = 20, budgetSeconds = 60 } = {}) {
  for (let i = 0; i < warmups; i++) for (const c of contenders) await c.run()
  const samples = new Map(contenders.map((c) => [c.name, []]))
  const begun = performance.now()
  for (let i = 0; i < rounds && (i < 3 || performance.now() - begun < budgetSeconds * 1000); i++)
    for (const c of contenders) {
      const t = performance.now()
      const value = await c.run()
      samples.get(c.name).push(typeof value === 'number' ? value : performance.now() - t)
    }
  const base = samples.get(contenders[0].name)
  return contenders.map((c) => {
    const own = samples.get(c.name)
    // The ratio of a round, so that a machine whose speed drifts does not decide.
    const ratios = own.map((v, i) => v / base[i])
    return {
      contender: c.name,
      unit: c.unit ?? 'ms',
      ...summary(own),
      ratio: median(ratios),
      samples: own,
      ...(c.checks ? { checks: c.checks() } : {}),
    }
  })
}

/** Largest difference of two arrays, relative to the scale of the second. */
export function relativeError(ours, reference) {
  let scale = 0
  let worst = 0
  for (let i = 0; i < reference.length; i++) {
    scale = Math.max(scale, Math.abs(reference[i]))
    worst = Math.max(worst, Math.abs(ours[i] - reference[i]))
  }
  return worst / scale
}

/** Rows of a job as a Markdown table. */
export function table(job, rows) {
  const line = (r) =>
    `| ${r.contender} | ${r.median.toFixed(r.unit === 'ms' ? 1 : 2)} | ${r.iqr.toFixed(1)} | ${r.n} | ${r.ratio.toFixed(3)} | ${Object.entries(
      r.checks ?? {},
    )
      .map(([k, v]) => `${k} ${typeof v === 'number' ? Number(v.toPrecision(2)) : v}`)
      .join(', ')} |`
  return [
    `### ${job.id} · ${job.title} · ${job.model}`,
    '',
    `| contender | median ${rows[0].unit} | IQR | n | ratio | checks |`,
    '|---|---|---|---|---|---|',
    ...rows.map(line),
    '',
  ].join('\n')
}
