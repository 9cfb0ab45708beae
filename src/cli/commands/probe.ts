/** @file `actlens probe`: what can be read off a site, judged against controls. */

import { basename } from 'node:path'
import { UsageError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import { writeSafetensors } from '../../models/formats/index.ts'
import {
  columnOf,
  type Estimate,
  type LabelledTexts,
  type ProbeKind,
  probe,
  probeKinds,
  readTable,
  type SiteResult,
  type StudyResult,
  type StudySettings,
  saveProbes,
  type TransferResult,
  transferMatrix,
  usualColumns,
} from '../../probe/index.ts'
import type { Position } from '../../steer/index.ts'
import { defineCommand, integer, modelArgument, number, type OptionRow } from '../command.ts'
import { withModel } from '../model.ts'
import { checkOutput } from '../output.ts'
import { short, table } from '../table.ts'
import { parseText } from '../texts.ts'
import { splitPatterns } from './run.ts'
import { position } from './vector.ts'

interface Options {
  readonly data: string
  readonly transfer?: readonly string[]
  readonly text?: string
  readonly label?: string
  readonly group?: string
  readonly site: readonly string[]
  readonly kind?: ProbeKind
  readonly position?: Position
  readonly c?: number
  readonly l1Ratio?: number
  readonly pca?: number
  readonly balanced?: boolean
  readonly folds?: number
  readonly seed?: number
  readonly maxExamples?: number
  readonly controls: boolean
  readonly edits?: string
  readonly out?: string
}

const kinds = Object.entries(probeKinds).map(([name, { doc }]) => `${name} (${doc.replace(/\.$/, '')})`)

const options: readonly OptionRow[] = [
  { flags: '--data <table>', doc: 'labelled texts: .csv or .tsv with a header, or .jsonl, perhaps .gz', required: true },
  {
    flags: '--transfer <table>',
    doc: 'a further table of the same columns and classes: probes learned on each table are judged on all',
    repeat: true,
  },
  { flags: '--text <name>', doc: 'column of the text (default: text, sentence, prompt or statement)' },
  { flags: '--label <name>', doc: 'column of the label (default: label, target or class)' },
  { flags: '--group <name>', doc: 'column of the source; its examples are never on both sides of a fold (default: equal texts)' },
  { flags: '--site <sites>', doc: "where: a site, or a pattern such as 'resid_post.*' for one probe each", required: true, repeat: true },
  { flags: '--kind <name>', doc: `one of ${kinds.join(', ')} (default: logistic)` },
  {
    flags: '--position <position>',
    doc: 'token that is read: last, mean, or a number, negative from the end (default: last)',
    parse: position,
  },
  { flags: '--c <c>', doc: 'inverse strength of the penalty (default: searched within each fold)', parse: number },
  { flags: '--l1-ratio <share>', doc: 'share of the L1 penalty of a logistic probe (default: 0)', parse: number },
  { flags: '--pca <n>', doc: 'learn from n principal components of the training texts (default: all features)', parse: integer(1) },
  { flags: '--balanced', doc: 'weight examples so that each class counts the same' },
  { flags: '--folds <n>', doc: 'folds of source texts (default: 5)', parse: integer(2) },
  { flags: '--seed <n>', doc: 'seed of folds, bootstrap and controls (default: 0)', parse: integer(0) },
  { flags: '--max-examples <n>', doc: 'use the first n rows', parse: integer(1) },
  { flags: '--no-controls', doc: 'leave shuffled labels, random features and token identity out' },
  { flags: '--edits <file>', doc: 'edits file: a JSON array of { op, site, params, where }' },
  { flags: '--out <file>', doc: 'safetensors file for the probes: SITE.weights, SITE.bias, SITE.mean, SITE.scale' },
]

export const command = defineCommand<{ model: string }, Options>({
  name: 'probe',
  summary: 'Trains a probe at each site on labelled texts and judges it on texts it has not seen, beside controls.',
  example: "probe embedded --data reviews.csv --site 'resid_post.*' --out probes.safetensors",
  arguments: [modelArgument],
  options,
  async run(context, args, options) {
    const sites = options.site.flatMap(splitPatterns)
    if (options.out !== undefined) await checkOutput(options.out)
    const own = await setOf(options.data, options)
    const further = await Promise.all((options.transfer ?? []).map((path) => setOf(path, options)))
    return withModel(context, args.model, options, async ({ model }) => {
      const { kind, position, c, l1Ratio, pca, balanced, folds, seed, controls } = options
      const given = { kind, position, C: c, l1Ratio, pca, balanced, folds, seed }
      const settings = {
        site: sites,
        controls,
        ...(Object.fromEntries(Object.entries(given).filter(([, v]) => v !== undefined)) as Partial<StudySettings>),
        signal: context.io.signal,
        onProgress: context.onProgress,
      }
      if (further.length > 0) {
        const all = [own, ...further]
        const twice = all.find((s, i) => all.findIndex((o) => o.name === s.name) !== i)
        if (twice) throw new UsageError(`Two tables are called '${twice.name}'; rename one, or give it once.`)
        const moved = await transferMatrix(model, { ...settings, sets: Object.fromEntries(all.map((s) => [s.name, s.set])) })
        for (const sentence of moved.warnings) context.warn(sentence)
        if (options.out !== undefined) await saveTransfer(options.out, moved)
        return {
          json: { model: model.origin.id, ...transferJson(moved), ...(options.out === undefined ? {} : { out: options.out }) },
          text: transferText(moved),
        }
      }
      const result = await probe(model, { ...settings, ...own.set })
      for (const sentence of result.warnings) context.warn(sentence)
      if (options.out !== undefined)
        await saveProbes(
          options.out,
          result.sites.map((s) => s.probe),
        )
      return {
        json: jsonOf(model.origin.id, result, {
          text: own.text,
          label: own.label,
          ...(options.out === undefined ? {} : { out: options.out }),
        }),
        text: `${textOf(result)}${options.out === undefined ? '' : `Written to ${options.out}.\n`}`,
      }
    })
  },
})

/** A table as a data set, under the name of its file. */
async function setOf(path: string, options: Options) {
  const data = await readTable(path)
  const text = columnOf(data, options.text, usualColumns.text, 'text')
  const label = columnOf(data, options.label, usualColumns.label, 'label')
  const group = options.group === undefined ? undefined : columnOf(data, options.group, [], 'source')
  const first = <T>(values: readonly T[]) => values.slice(0, options.maxExamples)
  const set: LabelledTexts = {
    texts: first(text.values).map(parseText),
    labels: first(label.values),
    ...(group ? { groups: first(group.values) } : {}),
  }
  return { name: basename(path).replace(/\.(csv|tsv|jsonl)(\.gz)?$/i, ''), text: text.name, label: label.name, set }
}

/** Scores [learned on, judged on] and cosines of each site, as tensors `SITE.accuracy` and so on. */
async function saveTransfer(path: string, { sites, sets }: TransferResult): Promise<void> {
  const tensors = sites.flatMap((s) => [
    ...Object.entries(s.scores).map(([name, value]) => [`${s.site}.${name}`, value] as const),
    [`${s.site}.cosines`, s.cosines] as const,
  ])
  await writeSafetensors(path, Object.fromEntries(tensors), { actlens: JSON.stringify({ format: 'actlens-transfer-1', sets }) })
}

const rowsOf = ({ shape, data }: NDArray<Float32Array>) =>
  Array.from({ length: shape[0] as number }, (_, r) => [...data.subarray(r * (shape[1] as number), (r + 1) * (shape[1] as number))])

function transferJson({ sets, sites, studies }: TransferResult) {
  return {
    sets,
    sites: sites.map((s) => ({
      site: s.site,
      ...Object.fromEntries(Object.entries(s.scores).map(([name, value]) => [name, rowsOf(value)])),
      cosines: rowsOf(s.cosines),
      controls: Object.fromEntries(sets.map((n) => [n, studies[n]?.sites.find((o) => o.site === s.site)?.controls])),
    })),
  }
}

function transferText({ sets, sites }: TransferResult): string {
  return sites
    .map(({ site, scores }) => {
      const [name, matrix] = Object.entries(scores)[0] as [string, NDArray<Float32Array>]
      const rows = rowsOf(matrix).map((r, i) => [sets[i] as string, ...r.map((v) => v.toFixed(3))])
      return `${name} at ${site}: learned on the row, judged on the column (on the diagonal, on held-out texts)\n${table(['', ...sets], rows)}`
    })
    .join('\n')
}

function jsonOf(model: string, result: StudyResult, facts: object) {
  const { sites, ...rest } = result
  return { model, ...facts, ...rest, sites: sites.map(siteJson) }
}

function siteJson({ site, width, scores, controls, selectivity, C }: SiteResult) {
  const values = Object.fromEntries(Object.entries(scores).map(([name, { value }]) => [name, value]))
  const ci = Object.fromEntries(Object.entries(scores).map(([name, { low, high }]) => [name, [low, high]]))
  return { site, width, ...values, ci, controls, ...(selectivity === undefined ? {} : { selectivity }), ...(C === undefined ? {} : { C }) }
}

const interval = ({ value, low, high }: Estimate) => `${value.toFixed(3)} (${low.toFixed(3)} to ${high.toFixed(3)})`

function textOf({ sites, kind, examples, groups, folds, classes, majority, position }: StudyResult): string {
  const names = Object.keys(sites[0]?.scores ?? {})
  const controls = Object.keys(sites[0]?.controls ?? {})
  const told = controls.map((c) => c.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`))
  const what = classes.length > 0 ? `${classes.length} classes, the commonest ${(100 * (majority ?? 0)).toFixed(1)} %` : 'numbers'
  return `${kind} at position ${position}: ${examples} examples of ${groups} texts, ${what}; ${folds} folds, 95 % intervals.
${table(
  ['site', ...names, ...told, 'C'],
  sites.map((s) => [
    s.site,
    ...names.map((n) => interval(s.scores[n] as Estimate)),
    ...controls.map((c) => (s.controls[c] as number).toFixed(3)),
    s.C === undefined ? '' : short(s.C),
  ]),
)}`
}
