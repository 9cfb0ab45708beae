/** @file Runs a reproduction: repeats over seeds, verdict, result. */
import { cpus, platform, totalmem } from 'node:os'
import { ActlensError, CancelledError, ModelError, messageOf, throwIfCancelled, UsageError } from '../base/errors.ts'
import type { OnProgress, WorkOptions } from '../base/progress.ts'
import { versions } from '../run/versions.ts'
import type { Figure, Metrics, Paper, Reading, Repeat, Table } from './paper.ts'
import { type Json, Study } from './study.ts'
import { type GateResult, gateResults, meanInterval, type Verdict, verdictOf } from './verdict.ts'

/** How a paper is run. */
export interface PaperOptions extends WorkOptions {
  /** A smoke run of under a minute: one seed, smaller numbers, never a verdict. */
  readonly quick?: boolean
  /** The user's own model, where the paper can take one. */
  readonly model?: string
  /** The one seed to run with. */
  readonly seed?: number
  readonly threads?: number
  /** Minutes after which no further repeat begins. */
  readonly minutes?: number
  /** Runs every step anew, whatever the cache holds. */
  readonly fresh?: boolean
  /** Folder of data sets too large to ship. */
  readonly dataFolder?: string
}

/** What a reproduction found: the document `result.json`. */
export interface PaperResult {
  readonly slug: string
  readonly title: string
  readonly claim: Paper['claim']
  readonly ours: number | null
  readonly baselines: Readonly<Record<string, number | null>>
  readonly controls: Readonly<Record<string, number | null>>
  readonly verdict: Verdict
  readonly reason: string
  readonly model: string
  readonly precision: string
  readonly seeds: readonly number[]
  readonly seconds: number
  readonly machine: string
  readonly versions: Readonly<Record<string, string>>
  readonly tables: readonly Table[]
  readonly figures: readonly Figure[]
  readonly quick: boolean
  /** The command that makes it again. */
  readonly command: string
  readonly gates: readonly GateResult[]
  /** All numbers of each repeat. */
  readonly repeats: readonly { readonly seed: number; readonly metrics: Metrics }[]
  /** 95 % interval of the mean of `ours` over repeats. */
  readonly interval: readonly [number | null, number | null]
}

/** Runs a reproduction to its verdict. Finished steps are cached, so that an interrupted run goes on where it was. */
export async function runPaper(paper: Paper, options: PaperOptions = {}): Promise<PaperResult> {
  if (options.model !== undefined && paper.ownModel === undefined)
    throw new ModelError(`'${paper.slug}' trains its own small models, so --model has no place in it; leave it out.`)
  if (options.seed !== undefined && !Number.isInteger(options.seed)) throw new UsageError(`A seed is a whole number, not ${options.seed}.`)
  const quick = options.quick ?? false
  const seeds = options.seed !== undefined ? [options.seed] : quick ? paper.seeds.slice(0, 1) : paper.seeds
  const began = performance.now()
  const done: { seed: number; repeat: Repeat }[] = []
  for (const [i, seed] of seeds.entries()) {
    throwIfCancelled(options.signal)
    const minutes = (performance.now() - began) / 60_000
    if (done.length > 0 && options.minutes !== undefined && minutes >= options.minutes) break
    done.push({ seed, repeat: await oneRepeat(paper, seed, quick, { ...options, ...within(options.onProgress, i, seeds.length) }) })
  }
  return resultOf(paper, done, { quick, options, wanted: seeds.length, seconds: (performance.now() - began) / 1000 })
}

/** Says which repeat a report is about. */
function within(report: OnProgress | undefined, index: number, count: number): { onProgress?: OnProgress } {
  if (!report) return {}
  return count === 1 ? { onProgress: report } : { onProgress: (p) => report({ ...p, task: `repeat ${index + 1} of ${count}, ${p.task}` }) }
}

async function oneRepeat(paper: Paper, seed: number, quick: boolean, options: PaperOptions): Promise<Repeat> {
  await using study = new Study({
    slug: paper.slug,
    revision: paper.revision,
    seed,
    quick,
    ...(options.model === undefined ? {} : { model: options.model }),
    ...(options.threads === undefined ? {} : { threads: options.threads }),
    ...(options.fresh === undefined ? {} : { fresh: options.fresh }),
    ...(options.dataFolder === undefined ? {} : { dataFolder: options.dataFolder }),
    ...(options.signal ? { signal: options.signal } : {}),
    ...(options.onProgress ? { onProgress: options.onProgress } : {}),
  })
  try {
    return await study.step<Repeat>('repeat', { data: options.dataFolder ?? null } as Json, () => paper.repeat(study))
  } catch (error) {
    if (error instanceof CancelledError)
      throw new CancelledError(
        `The run of '${paper.slug}' was cancelled; what was finished is kept, and the same command goes on from there.`,
      )
    if (error instanceof ActlensError) throw error
    throw new ActlensError(`'${paper.slug}' failed with seed ${seed}: ${messageOf(error)}`, { cause: error })
  }
}

async function resultOf(
  paper: Paper,
  done: readonly { seed: number; repeat: Repeat }[],
  run: { quick: boolean; options: PaperOptions; wanted: number; seconds: number },
): Promise<PaperResult> {
  const repeats = done.map((d) => d.repeat.metrics)
  const gates = gateResults(paper.gates, repeats)
  const { verdict, reason } = verdictOf(gates, run.quick)
  const ours = meanInterval(repeats.map((m) => paper.ours(m)))
  const read = (r: Reading) =>
    Object.fromEntries(Object.entries(r).map(([name, of]) => [name, finite(meanInterval(repeats.map((m) => of(m))).mean)]))
  const first = (done[0] as { repeat: Repeat }).repeat
  const missing = run.wanted - done.length
  return {
    slug: paper.slug,
    title: paper.title,
    claim: paper.claim,
    ours: finite(ours.mean),
    interval: [finite(ours.interval[0]), finite(ours.interval[1])],
    baselines: read(paper.baselines),
    controls: read(paper.controls),
    verdict,
    reason: missing > 0 ? `${reason} The budget of time left out ${missing} of ${run.wanted} repeats.` : reason,
    model: run.options.model ?? paper.model,
    precision: 'f32',
    seeds: done.map((d) => d.seed),
    seconds: Math.round(run.seconds * 10) / 10,
    machine: `${cpus().length} × ${cpus()[0]?.model.trim() ?? 'unknown processor'}, ${Math.round(totalmem() / 2 ** 30)} GiB, ${platform()}`,
    versions: { ...(await versions()), node: process.version },
    tables: [...(first.tables ?? []), metricsTable(done)],
    figures: first.figures ?? [],
    quick: run.quick,
    command: commandOf(paper, run.options),
    gates,
    repeats: done.map((d) => ({ seed: d.seed, metrics: d.repeat.metrics })),
  }
}

const finite = (x: number): number | null => (Number.isFinite(x) ? x : null)

/** All numbers of all repeats. */
function metricsTable(done: readonly { seed: number; repeat: Repeat }[]): Table {
  const names = [...new Set(done.flatMap((d) => Object.keys(d.repeat.metrics)))]
  return {
    name: 'metrics',
    title: 'All numbers, by seed',
    columns: ['number', ...done.map((d) => `seed ${d.seed}`), 'mean'],
    rows: names.map((n) => {
      const values = done.map((d) => d.repeat.metrics[n] ?? Number.NaN)
      return [n, ...values.map(finite), finite(meanInterval(values).mean)]
    }),
  }
}

/** The command that makes a result again. */
export function commandOf(paper: Paper, options: PaperOptions): string {
  const parts = ['actlens paper run', paper.slug]
  if (options.quick) parts.push('--quick')
  if (options.model !== undefined) parts.push(`--model ${options.model}`)
  if (options.seed !== undefined) parts.push(`--seed ${options.seed}`)
  if (options.minutes !== undefined) parts.push(`--minutes ${options.minutes}`)
  return parts.join(' ')
}
