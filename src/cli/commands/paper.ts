/** @file `actlens paper`: reproductions of papers. */
import { UsageError } from '../../base/errors.ts'
import { allPapers, committedResult, type PaperResult, paperOf, runPaper, writeResult } from '../../papers/index.ts'
import { type CommandContext, defineCommand, integer, number, type Outcome } from '../command.ts'
import { checkCommon } from '../model.ts'
import { table } from '../table.ts'

interface Options {
  readonly model?: string
  readonly quick?: boolean
  readonly seed?: number
  readonly minutes?: number
  readonly fresh?: boolean
  readonly data?: string
  readonly out?: string
}

type Action = (context: CommandContext, slug: string | undefined, options: Options) => Promise<Outcome>

const actions: Readonly<Record<string, Action>> = { list, run }

export const command = defineCommand<{ action: string; slug?: string }, Options>({
  name: 'paper',
  summary: 'Lists the papers that are implemented, or runs the reproduction of one.',
  example: 'paper run lineas --quick --out lineas-report',
  arguments: [
    { name: 'ACTION', doc: 'what to do', choices: Object.keys(actions) },
    { name: 'SLUG', doc: "with run: the paper's short name, as the list gives it", optional: true },
  ],
  options: [
    { flags: '--model <model>', doc: 'your own model, where the paper can take one' },
    { flags: '--quick', doc: 'a smoke run of under a minute: one seed, small numbers, no verdict' },
    { flags: '--seed <n>', doc: "run with this seed alone (default: the paper's seeds)", parse: integer(0) },
    { flags: '--minutes <n>', doc: 'begin no further repeat after so many minutes', parse: number },
    { flags: '--fresh', doc: 'run every step anew, whatever is cached' },
    { flags: '--data <folder>', doc: 'folder of data sets too large to ship' },
    { flags: '--out <folder>', doc: 'write result.json and report.html there' },
  ],
  run: (context, { action, slug }, options) => (actions[action] as Action)(context, slug, options),
})

async function list(_: CommandContext, slug: string | undefined): Promise<Outcome> {
  if (slug !== undefined) throw new UsageError(`'paper list' takes no SLUG; 'actlens paper run ${slug}' runs it.`)
  const papers = await allPapers()
  const rows = await Promise.all(
    papers.map(async (p) => {
      const last = await committedResult(p.slug)
      return {
        slug: p.slug,
        title: p.title,
        family: p.family,
        question: p.question,
        claim: p.claim,
        model: p.model,
        verdict: last?.verdict ?? null,
        ours: last?.ours ?? null,
        seeds: last?.seeds ?? [],
      }
    }),
  )
  const lines = rows.map((r) => [r.slug, r.family, r.verdict ?? 'not run', r.question])
  return { json: { papers: rows }, text: table(['paper', 'family', 'last verdict', 'question'], lines) }
}

async function run(context: CommandContext, slug: string | undefined, options: Options): Promise<Outcome> {
  if (slug === undefined) throw new UsageError("'paper run' needs a SLUG; 'actlens paper list' names them.")
  const { io, common, onProgress } = context
  const paper = await paperOf(slug)
  await checkCommon(common)
  if ((common.precision ?? 'f32') !== 'f32')
    throw new UsageError(`Papers are reproduced in f32, so that their numbers compare: leave '--precision ${common.precision}' out.`)
  if (options.minutes !== undefined && !(options.minutes > 0))
    throw new UsageError(`--minutes must be more than 0, not ${options.minutes}.`)
  const { out, data, ...rest } = options
  const result = await runPaper(paper, {
    ...rest,
    ...(data === undefined ? {} : { dataFolder: data }),
    ...(common.threads === undefined ? {} : { threads: common.threads }),
    signal: io.signal,
    onProgress,
  })
  if (out !== undefined) await writeResult(out, paper, result)
  return { json: result, text: summary(result, out) }
}

/** What a terminal shows. */
function summary(r: PaperResult, out: string | undefined): string {
  const show = (v: number | null) => (v === null ? '–' : String(Number(v.toPrecision(4))))
  const rows = [
    ['claim', r.claim.text, show(r.claim.threshold)],
    ['ours', r.claim.metric, show(r.ours)],
    ...Object.entries(r.baselines).map(([name, v]) => ['baseline', name, show(v)]),
    ...Object.entries(r.controls).map(([name, v]) => ['control', name, show(v)]),
  ]
  const gates = r.gates.map((g) => [g.passed ? 'holds' : 'fails', g.role, g.text, show(g.mean), g.bound])
  const where = out === undefined ? '' : `\nWritten to ${out}: result.json, report.html\n`
  return `${r.title}\n\n${table(['', '', 'value'], rows)}\n${table(['gate', 'role', 'what must hold', 'mean', 'wanted'], gates)}\n${r.verdict.toUpperCase()}: ${r.reason}\n${r.model}, ${r.precision}, seeds ${r.seeds.join(', ')}, ${r.seconds} s\n${where}`
}
