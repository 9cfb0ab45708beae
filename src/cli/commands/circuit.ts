/** @file `actlens circuit`: finds the edges that a behaviour needs, and measures how they do alone. */
import { UsageError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import { type Circuit, type CircuitSearch, findCircuit, type Replacement } from '../../explore/index.ts'
import { writeSafetensors } from '../../models/formats/index.ts'
import { describeEdits } from '../../run/edits-file.ts'
import { defineCommand, integer, modelArgument, number, type OptionRow } from '../command.ts'
import { withModel } from '../model.ts'
import { checkOutput } from '../output.ts'
import { short, table } from '../table.ts'
import { versions } from '../version.ts'
import { checkTokens, type PairCommandOptions, pairOptions, pairRequestOf } from './patch.ts'

interface Options extends PairCommandOptions {
  readonly search?: CircuitSearch['kind']
  readonly count?: number
  readonly threshold?: number
  readonly ablation?: Replacement
  readonly samples?: number
  readonly seed?: number
  readonly edits?: string
  readonly out?: string
}

const options: readonly OptionRow[] = [
  ...pairOptions,
  {
    flags: '--search <search>',
    doc: 'top: the --count edges of largest estimated effect; threshold: all whose estimated effect is at least --threshold; acdc: cut one by one, from the logits backwards, what changes the metric by less than --threshold (default: top)',
    choices: ['top', 'threshold', 'acdc'],
  },
  { flags: '--count <n>', doc: 'edges of the circuit, for top (default: 50)', parse: integer(1) },
  { flags: '--threshold <x>', doc: 'change of the metric, for threshold and acdc', parse: number },
  {
    flags: '--ablation <kind>',
    doc: "what cut edges carry: resample (the corrupted text's writes), mean (over both texts), zero (default: resample)",
    choices: ['resample', 'mean', 'zero'],
  },
  { flags: '--samples <n>', doc: 'random parts of the circuit that completeness is measured by (default: 10)', parse: integer(1) },
  { flags: '--seed <n>', doc: 'seed of these parts (default: 0)', parse: integer(0) },
  { flags: '--edits <file>', doc: 'edits file: a JSON array of { op, site, params, where }, in force in all runs' },
  {
    flags: '--out <file>',
    doc: 'safetensors file: circuit.scores and circuit.kept [sender, receiver], metric.full, .ablated, .circuit, .complement',
  },
]

export const command = defineCommand<{ model: string }, Options>({
  name: 'circuit',
  summary: 'Finds the edges between heads, MLPs and logits that a metric needs, and measures how they do alone.',
  example:
    "circuit embedded --clean 'Lily had a dog. The dog' --corrupt 'Lily had a cat. The cat' --answer barked --wrong meowed --count 100 --out circuit.safetensors",
  arguments: [modelArgument],
  options,
  async run(context, args, options) {
    checkTokens(options)
    const search = searchOf(options)
    if (options.out !== undefined) await checkOutput(options.out)
    return withModel(context, args.model, options, async ({ model, edits }) => {
      const { ablation, samples, seed } = options
      const request = pairRequestOf(model, options)
      const given = Object.fromEntries(Object.entries({ ablation, samples, seed }).filter(([, v]) => v !== undefined))
      const circuit = await findCircuit(model, { ...request, search, ...given, signal: context.io.signal, onProgress: context.onProgress })
      if (options.out !== undefined) {
        const { senders, receivers, faithfulness, completeness, incompleteness } = circuit
        const record = {
          model: { id: model.origin.id, hash: await model.origin.hash(), family: model.spec.family },
          ...request,
          search,
          ...given,
          axes: { sender: senders, receiver: receivers },
          faithfulness,
          completeness,
          incompleteness,
          edits: describeEdits(edits),
          precision: model.precision,
          versions: await versions(),
        }
        await writeSafetensors(options.out, tensorsOf(circuit), { actlens: JSON.stringify(record) })
        context.note(`The circuit was written to ${options.out}.`)
      }
      const { scores: _, kept: __, ...rest } = circuit
      return { json: { model: model.origin.id, ...rest, ...(options.out === undefined ? {} : { out: options.out }) }, text: shown(circuit) }
    })
  },
})

function searchOf({ search = 'top', count, threshold }: Options): CircuitSearch {
  if (search === 'top') {
    if (threshold !== undefined) throw new UsageError('--threshold is for --search threshold and acdc; leave it out.')
    return { kind: 'top', count: count ?? 50 }
  }
  if (count !== undefined) throw new UsageError('--count is for --search top; leave it out.')
  if (threshold === undefined) throw new UsageError(`--search ${search} needs --threshold, a change of the metric.`)
  return { kind: search, threshold }
}

function tensorsOf({ scores, kept, metric }: Circuit): Record<string, NDArray> {
  const scalars = Object.entries(metric).map(([name, value]): [string, NDArray] => [
    `metric.${name}`,
    { dtype: 'float32', shape: [], data: Float32Array.of(value) },
  ])
  return { 'circuit.scores': scores, 'circuit.kept': kept, ...Object.fromEntries(scalars) }
}

/** Edges that are shown. */
const shownEdges = 20

function shown({ edges, total, metric, faithfulness, completeness, incompleteness }: Circuit): string {
  const runs = table(
    ['run', 'metric'],
    [
      ['the whole model', short(metric.full)],
      ['the circuit alone', short(metric.circuit)],
      ['all but the circuit', short(metric.complement)],
      ['nothing', short(metric.ablated)],
    ],
  )
  const head = `${edges.length} of ${total} edges; faithfulness ${faithfulness.toFixed(3)}, completeness ${completeness.toFixed(3)}, mean gap over parts of the circuit ${incompleteness.toFixed(3)}`
  const rows = edges.slice(0, shownEdges).map((e) => [e.sender, e.receiver, short(e.score)])
  return `${head}\n${runs}\nthe edges${edges.length > shownEdges ? ', the largest' : ''}\n${table(['sender', 'receiver', 'change'], rows)}`
}
