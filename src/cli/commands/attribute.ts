/** @file `actlens attribute`: what each cell of a patching sweep would change, estimated from gradients. */
import { UsageError } from '../../base/errors.ts'
import { type AttributionResult, attribute, attributeEdges, type EdgeResult } from '../../explore/index.ts'
import { defineCommand, integer, modelArgument, type OptionRow } from '../command.ts'
import { short, table } from '../table.ts'
import { type SweepCommandOptions, sweepCommand, sweepOptions } from './patch.ts'

interface Options extends SweepCommandOptions {
  readonly method?: 'gradient' | 'integrated' | 'edge'
  readonly steps?: number
}

const options: readonly OptionRow[] = [
  ...sweepOptions,
  {
    flags: '--method <method>',
    doc: "gradient: one backward pass; integrated: gradients along the way to the other run's value; edge: gradient, and a tensor 'edges' [sender, receiver] between writes to and readings of the residual stream (default: gradient)",
    choices: ['gradient', 'integrated', 'edge'],
  },
  { flags: '--steps <n>', doc: 'points along the way, for integrated (default: 8)', parse: integer(1, 1000) },
]

export const command = defineCommand<{ model: string }, Options>({
  name: 'attribute',
  summary: 'Estimates from gradients what each cell of a patching sweep would change; the tables hold changes of the metric.',
  example:
    "attribute embedded --clean 'Lily had a dog. The dog' --corrupt 'Lily had a cat. The cat' --answer barked --wrong meowed --sites 'z.*' --out attribution.safetensors",
  arguments: [modelArgument],
  options,
  run(context, args, { method = 'gradient', steps, ...options }) {
    if (steps !== undefined && method !== 'integrated') throw new UsageError('--steps is for --method integrated; leave it out.')
    return sweepCommand(context, args.model, options, 'change', async (model, request) => {
      const result = await attribute(model, {
        ...request,
        method: method === 'integrated' ? method : 'gradient',
        ...(steps === undefined ? {} : { steps }),
      })
      if (method !== 'edge') return { result, facts: { method, ...completenessOf(result) }, text: completenessText(result) }
      const edges = await attributeEdges(model, request)
      const { senders, receivers, scores } = edges
      return {
        result,
        facts: { method, edges: { senders, receivers, ...(context.common.json ? { values: [...scores.data] } : {}) } },
        tensors: { edges: scores },
        text: edgesText(edges),
      }
    })
  },
})

const completenessOf = ({ completeness }: AttributionResult) => (completeness ? { completeness } : {})

function completenessText({ completeness }: AttributionResult): string {
  if (!completeness) return ''
  const rows = Object.entries(completeness).map(([site, { sum, change }]) => [site, short(sum), short(change), short(sum - change)])
  return `\nthe parts of each site against what replacing all of it changes\n${table(['site', 'sum', 'change', 'error'], rows)}`
}

/** Edges that are shown. */
const shownEdges = 10

function edgesText({ senders, receivers, scores }: EdgeResult): string {
  const order = [...scores.data.keys()].sort((a, b) => Math.abs(scores.data[b] as number) - Math.abs(scores.data[a] as number))
  const rows = order
    .slice(0, shownEdges)
    .map((i) => [
      senders[Math.floor(i / receivers.length)] as string,
      receivers[i % receivers.length] as string,
      short(scores.data[i] as number),
    ])
  return `\nedges [sender ${senders.length}, receiver ${receivers.length}], the largest\n${table(['sender', 'receiver', 'change'], rows)}`
}
