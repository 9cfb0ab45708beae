/** @file `actlens patch`: activation patching over sites, positions and heads. */
import { UsageError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import { type Metric, type MetricKind, metricKinds, type Positions, patch, type SweepResult, type SweepTable } from '../../explore/index.ts'
import { writeSafetensors } from '../../models/formats/index.ts'
import { describeEdits } from '../../run/edits-file.ts'
import { type Model, oneToken } from '../../run/index.ts'
import { type CommandContext, defineCommand, integer, modelArgument, type OptionRow, type Outcome } from '../command.ts'
import { type EditedModel, withModel } from '../model.ts'
import { checkOutput } from '../output.ts'
import { quoted, short, table } from '../table.ts'
import { encodeTexts, parseText, type TextOrIds } from '../texts.ts'
import { versions } from '../version.ts'
import { splitPatterns } from './run.ts'

/** A pair of texts and what is measured on them. */
export interface PairCommandOptions {
  readonly clean: TextOrIds
  readonly corrupt: TextOrIds
  readonly answer?: string
  readonly wrong?: string
  readonly metric?: MetricKind
  readonly position?: number
}

/** Options that `patch` and `attribute` share. */
export interface SweepCommandOptions extends PairCommandOptions {
  readonly sites: readonly string[]
  readonly direction?: 'denoise' | 'noise'
  readonly positions?: Positions
  readonly edits?: string
  readonly out?: string
}

const metrics = Object.entries(metricKinds).map(([name, { doc }]) => `${name} (${doc})`)

/** The rows of the options of a pair. */
export const pairOptions: readonly OptionRow[] = [
  { flags: '--clean <text>', doc: 'the text on which the model does it', required: true, parse: parseText },
  { flags: '--corrupt <text>', doc: 'a text of as many tokens on which it does not', required: true, parse: parseText },
  { flags: '--answer <token>', doc: "the right next token of the clean text, a text of one token (' dog') or ids:N" },
  { flags: '--wrong <token>', doc: 'the token that it is measured against' },
  { flags: '--metric <name>', doc: `one of ${metrics.join(', ')} (default: logit-difference)`, choices: Object.keys(metricKinds) },
  { flags: '--position <n>', doc: 'position at which the metric reads, negative from the end (default: -1)', parse: integer(-1e9) },
]

/** The rows of the options of a sweep. */
export const sweepOptions: readonly OptionRow[] = [
  ...pairOptions,
  {
    flags: '--sites <sites>',
    doc: "what is changed: sites, aliases, patterns ('resid_pre.*'), one table each",
    required: true,
    repeat: true,
  },
  {
    flags: '--direction <direction>',
    doc: 'denoise writes clean values into the corrupted run, noise the reverse (default: denoise)',
    choices: ['denoise', 'noise'],
  },
  { flags: '--positions <positions>', doc: 'a cell for each position, or all at once (default: each)', choices: ['each', 'all'] },
  { flags: '--edits <file>', doc: 'edits file: a JSON array of { op, site, params, where }, in force in both runs' },
  { flags: '--out <file>', doc: 'safetensors file: a tensor for each pattern, metric.clean and metric.corrupt' },
]

export const command = defineCommand<{ model: string }, SweepCommandOptions>({
  name: 'patch',
  summary: 'Writes activations of one run into another, cell by cell, and measures what each changes.',
  example:
    "patch embedded --clean 'Lily had a dog. The dog' --corrupt 'Lily had a cat. The cat' --answer barked --wrong meowed --sites 'resid_pre.*' --out patch.safetensors",
  arguments: [modelArgument],
  options: sweepOptions,
  run: (context, args, options) =>
    sweepCommand(context, args.model, options, 'metric', async (model, request) => ({ result: await patch(model, request) })),
})

/** What a sweep has to do, in the library's terms. */
export interface SweepRequest {
  readonly clean: { readonly ids: readonly number[] }
  readonly corrupt: { readonly ids: readonly number[] }
  readonly metric: Metric
  readonly sites: readonly string[]
  readonly direction: 'denoise' | 'noise'
  readonly positions: Positions
  readonly signal: AbortSignal
  readonly onProgress: CommandContext['onProgress']
}

/** What a sweep has done: its tables, and what else goes into the record, the file and the text. */
export interface SweepWork {
  readonly result: SweepResult
  readonly facts?: Readonly<Record<string, unknown>>
  readonly tensors?: Readonly<Record<string, NDArray>>
  readonly text?: string
}

/** Runs a command that makes a table for each pattern, and writes and shows them. `holds` says what the cells are. */
export async function sweepCommand(
  context: CommandContext,
  name: string,
  options: SweepCommandOptions,
  holds: 'metric' | 'change',
  work: (model: Model, request: SweepRequest) => Promise<SweepWork>,
): Promise<Outcome> {
  checkTokens(options)
  if (options.out !== undefined) await checkOutput(options.out)
  return withModel(context, name, options, async ({ model, edits }) => {
    const request = requestOf(context, model, options)
    const { result, facts = {}, tensors = {}, text = '' } = await work(model, request)
    if (options.out !== undefined) {
      const record = { holds, ...(await recordOf(model, edits, request)), ...facts }
      await writeSafetensors(options.out, { ...tensorsOf(result), ...tensors }, { actlens: JSON.stringify(record) })
      context.note(`${Object.keys(result.tables).length} tables were written to ${options.out}.`)
    }
    const tables = Object.values(result.tables).map(({ data, ...rest }) => ({ ...rest, values: [...data] }))
    return {
      json: {
        model: model.origin.id,
        metric: result.metric,
        holds,
        tables,
        ...facts,
        ...(options.out === undefined ? {} : { out: options.out }),
      },
      text: shown(model, request, result, holds) + text,
    }
  })
}

/** Refuses tokens that the metric lacks, and those that it does not look at. */
export function checkTokens({ metric = 'logit-difference', answer, wrong, position }: PairCommandOptions): void {
  const given = { answer, wrong }
  const { tokens, everywhere } = metricKinds[metric]
  for (const key of ['answer', 'wrong'] as const) {
    if (tokens.includes(key) && given[key] === undefined)
      throw new UsageError(`The metric ${metric} needs --${key}: a text of one token, or ids:N.`)
    if (!tokens.includes(key) && given[key] !== undefined)
      throw new UsageError(`The metric ${metric} does not look at --${key}; leave it out.`)
  }
  if (everywhere && position !== undefined) throw new UsageError(`The metric ${metric} looks at all positions; leave --position out.`)
}

/** A pair and its metric in the library's terms. */
export function pairRequestOf(model: Model, o: PairCommandOptions): Pick<SweepRequest, 'clean' | 'corrupt' | 'metric'> {
  const ids = (text: TextOrIds, what: string) => ({ ids: encodeTexts(model, [text], what)[0] as number[] })
  const tokens = {
    ...(o.answer === undefined ? {} : { answer: oneToken(model, o.answer, '--answer') }),
    ...(o.wrong === undefined ? {} : { wrong: oneToken(model, o.wrong, '--wrong') }),
  }
  const place = o.position === undefined ? {} : { position: o.position }
  return {
    clean: ids(o.clean, '--clean'),
    corrupt: ids(o.corrupt, '--corrupt'),
    metric: { kind: o.metric ?? 'logit-difference', ...tokens, ...place } as Metric,
  }
}

function requestOf(context: CommandContext, model: Model, o: SweepCommandOptions): SweepRequest {
  return {
    ...pairRequestOf(model, o),
    sites: o.sites.flatMap(splitPatterns),
    direction: o.direction ?? 'denoise',
    positions: o.positions ?? 'each',
    signal: context.io.signal,
    onProgress: context.onProgress,
  }
}

async function recordOf(model: Model, edits: EditedModel['edits'], { signal: _, onProgress: __, ...request }: SweepRequest) {
  return {
    model: { id: model.origin.id, hash: await model.origin.hash(), family: model.architecture.family },
    ...request,
    edits: describeEdits(edits),
    precision: model.precision,
    versions: await versions(),
  }
}

/** A result as tensors of a file: each table under its pattern, and the metric of both runs as scalars. */
function tensorsOf({ tables, metric }: SweepResult): Record<string, NDArray> {
  const scalar = (value: number): NDArray => ({ dtype: 'float32', shape: [], data: Float32Array.of(value) })
  return {
    ...Object.fromEntries(
      Object.values(tables).map(({ name, shape, data }) => [name, { dtype: 'float32', shape, data } satisfies NDArray]),
    ),
    'metric.clean': scalar(metric.clean),
    'metric.corrupt': scalar(metric.corrupt),
  }
}

/** Cells that are shown of each table. */
const shownCells = 10

function shown(model: Model, request: SweepRequest, { tables, metric }: SweepResult, holds: 'metric' | 'change'): string {
  const kind = request.metric.kind
  return `${kind} of the clean run ${short(metric.clean)}, of the corrupted run ${short(metric.corrupt)}\n${Object.values(tables)
    .map(
      (t) =>
        `\n${t.name} [${t.axes.map((a) => `${a.name} ${a.labels.length}`).join(', ')}], the largest changes\n${topCells(model, request, t, holds === 'change' ? 0 : endOf(request, metric), holds)}`,
    )
    .join('')}`
}

/** The metric of the run that is changed. */
const endOf = ({ direction }: SweepRequest, metric: SweepResult['metric']) => (direction === 'noise' ? metric.clean : metric.corrupt)

function topCells(model: Model, request: SweepRequest, t: SweepTable, base: number, holds: 'metric' | 'change'): string {
  const order = [...t.data.keys()].sort((a, b) => Math.abs((t.data[b] as number) - base) - Math.abs((t.data[a] as number) - base))
  const { ids } = request.direction === 'noise' ? request.clean : request.corrupt
  const pieces = model.hasTokenizer && t.axes.some((a) => a.name === 'pos')
  const cell = (index: number) => {
    const labels = labelsOf(t, index)
    const value = t.data[index] as number
    return [
      ...labels.map(String),
      ...(pieces ? [quoted(model.tokenizer.piece(ids[labels[t.axes.findIndex((a) => a.name === 'pos')] as number] as number))] : []),
      ...(holds === 'metric' ? [short(value)] : []),
      short(value - base),
    ]
  }
  const head = [...t.axes.map((a) => a.name), ...(pieces ? ['token'] : []), ...(holds === 'metric' ? ['metric'] : []), 'change']
  return table(head, order.slice(0, shownCells).map(cell))
}

/** The labels of a cell along the axes of its table. */
function labelsOf({ axes }: SweepTable, index: number): number[] {
  let rest = index
  return axes
    .toReversed()
    .map(({ labels }) => {
      const label = labels[rest % labels.length] as number
      rest = Math.floor(rest / labels.length)
      return label
    })
    .reverse()
}
