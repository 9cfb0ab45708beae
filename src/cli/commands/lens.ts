/** @file `actlens lens`: what the model would say at each layer, read through its final norm and unembedding. */
import { existsSync } from 'node:fs'
import { FormatError, UsageError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import { fitJacobianLens, type LensMaps, type LensResult, lens, loadLens, saveLens } from '../../explore/index.ts'
import { writeSafetensors } from '../../models/formats/index.ts'
import { describeEdits } from '../../run/edits-file.ts'
import type { Model } from '../../run/index.ts'
import { type CommandContext, defineCommand, integer, modelArgument, type OptionRow } from '../command.ts'
import { withModel } from '../model.ts'
import { checkOutput } from '../output.ts'
import { quoted, table } from '../table.ts'
import { encodeTexts, parseText, readTexts, type TextOrIds } from '../texts.ts'
import { versions } from '../version.ts'
import { splitPatterns } from './run.ts'

interface Options {
  readonly text: TextOrIds
  readonly kind?: 'logit' | 'jacobian'
  readonly sites?: readonly string[]
  readonly top?: number
  readonly fit?: string
  readonly load?: string
  readonly save?: string
  readonly edits?: string
  readonly out?: string
}

/** Kinds of lenses, and why those that are not there are refused. */
const kinds: Readonly<Record<string, string | undefined>> = {
  logit: undefined,
  jacobian: undefined,
  tuned:
    'a tuned lens needs translators that are trained, which is not possible here yet; use logit, or jacobian, which is fitted without training',
  path: 'there is no path lens here yet; use logit or jacobian, or attribute --method edge for paths',
}

const options: readonly OptionRow[] = [
  { flags: '--text <text>', doc: 'the text that is read', required: true, parse: parseText },
  {
    flags: '--kind <kind>',
    doc: 'logit: the residual stream as it is; jacobian: moved on by how it moves the last one on average (default: logit)',
    choices: Object.keys(kinds),
  },
  { flags: '--sites <sites>', doc: "what is read: sites d_model wide (default: 'resid_post.*')", repeat: true },
  { flags: '--top <n>', doc: 'most likely tokens for each place (default: 10)', parse: integer(1, 1000) },
  {
    flags: '--fit <file>',
    doc: 'texts over which a jacobian lens is fitted: a text a line, or JSONL (default: --text itself)',
    conflicts: ['load'],
  },
  { flags: '--load <file>', doc: 'a jacobian lens that was fitted before' },
  { flags: '--save <file>', doc: 'safetensors file for the fitted lens', conflicts: ['load'] },
  { flags: '--edits <file>', doc: 'edits file: a JSON array of { op, site, params, where }' },
  {
    flags: '--out <file>',
    doc: 'safetensors file: lens.top_ids and lens.top_probs [layer, pos, top], lens.entropy and lens.kl [layer, pos], in nats',
  },
]

export const command = defineCommand<{ model: string }, Options>({
  name: 'lens',
  summary: 'Shows what the model would say at each layer.',
  example: "lens embedded --text 'Once upon a time there was a' --top 5",
  arguments: [modelArgument],
  options,
  async run(context, args, options) {
    const { kind = 'logit', top } = options
    if (kinds[kind]) throw new UsageError(`The kind '${kind}' is not available: ${kinds[kind]}.`)
    for (const key of ['fit', 'load', 'save'] as const)
      if (kind === 'logit' && options[key] !== undefined)
        throw new UsageError(`--${key} is for --kind jacobian; a logit lens is not fitted.`)
    for (const path of [options.out, options.save]) if (path !== undefined) await checkOutput(path)
    if (options.load !== undefined && !existsSync(options.load)) throw new FormatError(`There is no file ${options.load}.`)
    const texts = options.fit === undefined ? [options.text] : await readTexts(options.fit, { fields: ['text'] })
    return withModel(context, args.model, options, async ({ model, edits }) => {
      const sites = (options.sites ?? ['resid_post.*']).flatMap(splitPatterns)
      const maps = kind === 'jacobian' ? await mapsOf(context, model, options, texts, sites) : undefined
      const ids = encodeTexts(model, [options.text], '--text')[0] as number[]
      const result = await lens(model, { ids }, { sites, ...(top === undefined ? {} : { top }), ...(maps ? { maps } : {}) })
      if (options.out !== undefined) {
        const record = {
          format: 'actlens-lens-result-1',
          kind,
          model: { id: model.origin.id, hash: await model.origin.hash(), family: model.spec.family },
          sites: result.sites,
          edits: describeEdits(edits),
          precision: model.precision,
          versions: await versions(),
        }
        await writeSafetensors(options.out, tensorsOf(result), { actlens: JSON.stringify(record) })
        context.note(`The lens was written to ${options.out}.`)
      }
      return { json: jsonOf(model, result, options.out), text: shown(model, result) }
    })
  },
})

async function mapsOf(
  context: CommandContext,
  model: Model,
  options: Options,
  texts: readonly TextOrIds[],
  sites: readonly string[],
): Promise<LensMaps> {
  if (options.load !== undefined) return loadLens(options.load)
  const rows = encodeTexts(model, texts, options.fit ?? '--text')
  const maps = await fitJacobianLens(model, { rows }, { sites, signal: context.io.signal, onProgress: context.onProgress })
  if (options.save !== undefined) {
    await saveLens(options.save, maps, { model: { id: model.origin.id, hash: await model.origin.hash() }, texts: rows.length })
    context.note(`The fitted lens was written to ${options.save}.`)
  }
  return maps
}

function tensorsOf(r: LensResult): Record<string, NDArray> {
  const input_ids: NDArray = { dtype: 'int64', shape: [1, r.tokens.length], data: BigInt64Array.from(r.tokens, BigInt) }
  return { input_ids, 'lens.top_ids': r.topIds, 'lens.top_probs': r.topProbs, 'lens.entropy': r.entropy, 'lens.kl': r.kl }
}

const pieceOf = (model: Model, id: number) => (model.hasTokenizer ? { piece: model.tokenizer.piece(id) } : {})

/** The tokens at one place, the most likely first. */
function topAt(model: Model, { topIds, topProbs, tokens }: LensResult, layer: number, position: number) {
  const top = topIds.shape[2] as number
  const start = (layer * tokens.length + position) * top
  return Array.from({ length: top }, (_, i) => {
    const id = Number(topIds.data[start + i])
    return { id, ...pieceOf(model, id), p: topProbs.data[start + i] as number }
  })
}

function jsonOf(model: Model, r: LensResult, out: string | undefined) {
  const places = <T>(value: (layer: number, position: number) => T) => r.sites.map((_, l) => r.tokens.map((__, p) => value(l, p)))
  const at = (array: NDArray<Float32Array>) => places((l, p) => array.data[l * r.tokens.length + p] as number)
  return {
    model: model.origin.id,
    kind: r.kind,
    sites: r.sites,
    tokens: r.tokens.map((id) => ({ id, ...pieceOf(model, id) })),
    top: places((l, p) => topAt(model, r, l, p)),
    entropy: at(r.entropy),
    kl: at(r.kl),
    ...(out === undefined ? {} : { out }),
  }
}

/** Tokens that are shown of each place. */
const shownTokens = 5

/** The last position at every layer, and the first choice at every position. */
function shown(model: Model, r: LensResult): string {
  const name = (t: { id: number; piece?: string }) => (t.piece === undefined ? String(t.id) : quoted(t.piece))
  const last = r.tokens.length - 1
  const rows = r.sites.map((site, l) => [
    site,
    ...topAt(model, r, l, last)
      .slice(0, shownTokens)
      .map((t) => `${name(t)} ${(100 * t.p).toFixed(0)} %`),
  ])
  const head = ['site', ...(rows[0] as string[]).slice(1).map((_, i) => `${i + 1}.`)]
  const grid = r.sites.map((site, l) => [site, ...r.tokens.map((_, p) => name(topAt(model, r, l, p)[0] as { id: number; piece?: string }))])
  const columns = ['site', ...r.tokens.map((id) => name({ id, ...pieceOf(model, id) }))]
  return `next token after the whole text\n${table(head, rows)}\nfirst choice after each token\n${table(columns, grid)}`
}
