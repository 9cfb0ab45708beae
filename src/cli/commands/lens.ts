/** @file `actlens lens`: what the model would say at each layer, read through its final norm and unembedding. */
import { existsSync } from 'node:fs'
import { FormatError, UsageError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import {
  fitJacobianLens,
  type LensMaps,
  lens,
  loadLens,
  patchscope,
  pathLens,
  saveLens,
  saveTunedLens,
  trainTunedLens,
} from '../../explore/index.ts'
import { writeSafetensors } from '../../models/formats/index.ts'
import { checkpointFolder } from '../../run/checkpoints.ts'
import { describeEdits } from '../../run/edits-file.ts'
import type { Model } from '../../run/index.ts'
import { type CommandContext, defineCommand, integer, modelArgument, type OptionRow } from '../command.ts'
import { lensView, patchscopeView, pathView, type View } from '../lens-views.ts'
import { withModel } from '../model.ts'
import { checkOutput } from '../output.ts'
import { encodeTexts, parseText, readTexts, type TextOrIds } from '../texts.ts'
import { versions } from '../version.ts'
import { splitPatterns } from './run.ts'

interface Options {
  readonly text: TextOrIds
  readonly kind?: Kind
  readonly sites?: readonly string[]
  readonly top?: number
  readonly fit?: string
  readonly load?: string
  readonly save?: string
  readonly steps?: number
  readonly checkpoints?: string
  readonly by?: 'components' | 'heads'
  readonly target?: TextOrIds
  readonly placeholder?: number
  readonly into?: string
  readonly maxNewTokens?: number
  readonly edits?: string
  readonly out?: string
}

type Kind = 'logit' | 'tuned' | 'jacobian' | 'path' | 'patchscope'

/** What a kind needs to be read. */
interface Reading {
  readonly context: CommandContext
  readonly model: Model
  readonly options: Options
  readonly ids: readonly number[]
  readonly sites: readonly string[]
}

interface KindRow {
  readonly doc: string
  /** Options that concern it, beside those that all have. */
  readonly options: readonly (keyof Options)[]
  readonly needs?: readonly (keyof Options)[]
  readonly read: (reading: Reading) => Promise<View>
}

const fitted = async (reading: Reading, fitOver: (texts: readonly TextOrIds[]) => Promise<LensMaps>) => {
  const { context, model, options, ids, sites } = reading
  const { fit: path, load } = options
  const maps =
    load === undefined
      ? await fitOver(path === undefined ? [options.text] : await readTexts(path, { fields: ['text'] }))
      : await loadLens(load)
  if (options.save !== undefined) {
    if (options.save.endsWith('.safetensors'))
      await saveLens(options.save, maps, { model: { id: model.origin.id, hash: await model.origin.hash() } })
    else await saveTunedLens(options.save, maps, { id: model.origin.id, layers: model.spec.layers })
    context.note(`The fitted lens was written to ${options.save}.`)
  }
  if (maps.kind !== options.kind) throw new UsageError(`${load} holds a ${maps.kind} lens; say --kind ${maps.kind}.`)
  return lensView(model, await lens(model, { ids }, { sites, maps, ...topOf(options) }))
}

const topOf = ({ top }: Options) => (top === undefined ? {} : { top })
const work = ({ io, onProgress }: CommandContext) => ({ signal: io.signal, onProgress })

/** The kinds of lenses. */
const kinds: Readonly<Record<Kind, KindRow>> = {
  logit: {
    doc: 'the residual stream as it is',
    options: ['sites'],
    read: async ({ model, options, ids, sites }) => lensView(model, await lens(model, { ids }, { sites, ...topOf(options) })),
  },
  tuned: {
    doc: 'through translators that are trained to say what the model says in the end',
    options: ['sites', 'fit', 'load', 'save', 'steps', 'checkpoints'],
    read: (reading) =>
      fitted(reading, async (texts) => {
        const { context, model, options } = reading
        if (options.fit === undefined)
          throw new UsageError('A tuned lens is trained on texts: give them by --fit FILE, or a trained lens by --load.')
        const { steps, checkpoints } = options
        const { lens: trained } = await trainTunedLens(model, encodeTexts(model, texts, options.fit), {
          ...work(context),
          ...(options.sites ? { sites: reading.sites } : {}),
          ...(steps === undefined ? {} : { steps }),
          ...(checkpoints === undefined
            ? {}
            : { checkpoints: { files: checkpointFolder(checkpoints), every: 50, keep: 2, resume: 'newest' } }),
        })
        return trained
      }),
  },
  jacobian: {
    doc: 'moved on by how it moves the last one on average',
    options: ['sites', 'fit', 'load', 'save'],
    read: (reading) =>
      fitted(reading, (texts) => {
        const { context, model, options, sites } = reading
        return fitJacobianLens(model, { rows: encodeTexts(model, texts, options.fit ?? '--text') }, { sites, ...work(context) })
      }),
  },
  path: {
    doc: 'what each write to the residual stream says by its direct path, the final norm frozen; the paths add up to the logits',
    options: ['by'],
    read: async ({ model, options, ids }) =>
      pathView(model, await pathLens(model, { ids }, { ...topOf(options), ...(options.by ? { by: options.by } : {}) })),
  },
  patchscope: {
    doc: 'each state put into another text, --target, which says what it holds',
    options: ['sites', 'target', 'placeholder', 'into', 'maxNewTokens'],
    needs: ['target'],
    read: async ({ context, model, options, ids, sites }) => {
      const { placeholder, into, maxNewTokens } = options
      const given = { placeholder, into, maxNewTokens }
      const result = await patchscope(model, {
        source: { ids },
        positions: [...ids.keys()],
        target: { ids: encodeTexts(model, [options.target as TextOrIds], '--target')[0] as number[] },
        sites,
        ...topOf(options),
        ...(Object.fromEntries(Object.entries(given).filter(([, v]) => v !== undefined)) as object),
        ...work(context),
      })
      return patchscopeView(model, result)
    },
  },
}

const names = Object.keys(kinds) as Kind[]
const kindDocs = names.map((n) => `${n}: ${kinds[n].doc}`).join('; ')

const options: readonly OptionRow[] = [
  { flags: '--text <text>', doc: 'the text that is read', required: true, parse: parseText },
  { flags: '--kind <kind>', doc: `${kindDocs} (default: logit)`, choices: names },
  {
    flags: '--sites <sites>',
    doc: "what is read: sites d_model wide (default: 'resid_post.*'; tuned: what each block reads)",
    repeat: true,
  },
  { flags: '--top <n>', doc: 'most likely tokens for each place (default: 10)', parse: integer(1, 1000) },
  {
    flags: '--fit <file>',
    doc: 'texts over which a tuned or jacobian lens is fitted: a text a line, or JSONL (jacobian: --text itself by default)',
    conflicts: ['load'],
  },
  { flags: '--load <file>', doc: 'a lens that was fitted before, or a folder of the tuned-lens package' },
  {
    flags: '--save <file>',
    doc: 'safetensors file for the fitted lens; a tuned lens goes into a folder as the tuned-lens package has it where the name does not end in .safetensors',
    conflicts: ['load'],
  },
  { flags: '--steps <n>', doc: 'steps of training of a tuned lens (default: 250)', parse: integer(1, 1e9) },
  { flags: '--checkpoints <folder>', doc: 'where the training of a tuned lens is kept, and goes on from' },
  { flags: '--by <parts>', doc: 'paths of components or of heads (default: components)', choices: ['components', 'heads'] },
  { flags: '--target <text>', doc: 'the text that a patchscope puts states into', parse: parseText },
  { flags: '--placeholder <n>', doc: 'its position that states go to, negative from the end (default: -1)', parse: integer(-1e9) },
  { flags: '--into <site>', doc: 'its site that states go to (default: the one that they come from)' },
  { flags: '--max-new-tokens <n>', doc: 'tokens that a patchscope writes on', parse: integer(1) },
  { flags: '--edits <file>', doc: 'edits file: a JSON array of { op, site, params, where }' },
  {
    flags: '--out <file>',
    doc: 'safetensors file: lens.top_ids and lens.top_probs [layer, pos, top], lens.entropy and lens.kl [layer, pos], in nats; path: lens.top_ids, lens.top_logits, lens.bottom_ids, lens.bottom_logits [path, pos, top]',
  },
]

/** Options that some kinds have and others have not. */
const particular = [...new Set(names.flatMap((n) => kinds[n].options))]

export const command = defineCommand<{ model: string }, Options>({
  name: 'lens',
  summary: 'Shows what the model would say at each layer.',
  example: "lens embedded --text 'Once upon a time there was a' --top 5",
  arguments: [modelArgument],
  options,
  async run(context, args, given) {
    const { kind = 'logit' } = given
    const options = { ...given, kind }
    const row = kinds[kind]
    const flag = (key: keyof Options) => `--${key.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`
    for (const key of particular)
      if (options[key] !== undefined && !row.options.includes(key))
        throw new UsageError(
          `${flag(key)} does not concern --kind ${kind}, but ${names.filter((n) => kinds[n].options.includes(key)).join(', ')}; leave it out.`,
        )
    for (const key of row.needs ?? []) if (options[key] === undefined) throw new UsageError(`--kind ${kind} needs ${flag(key)}.`)
    for (const path of [options.out, options.save?.endsWith('.safetensors') ? options.save : undefined])
      if (path !== undefined) await checkOutput(path)
    if (options.save !== undefined && !options.save.endsWith('.safetensors') && kind !== 'tuned')
      throw new UsageError(`--save ${options.save} must end in .safetensors: only a tuned lens has a folder of its own.`)
    if (options.load !== undefined && !existsSync(options.load)) throw new FormatError(`There is no file ${options.load}.`)
    return withModel(context, args.model, options, async ({ model, edits }) => {
      const standard = kind === 'tuned' ? blockReads(model) : ['resid_post.*']
      const sites = options.sites?.flatMap(splitPatterns) ?? standard
      const ids = encodeTexts(model, [options.text], '--text')[0] as number[]
      const view = await row.read({ context, model, options, ids, sites })
      if (options.out !== undefined) {
        const record = {
          format: 'actlens-lens-result-1',
          kind,
          model: { id: model.origin.id, hash: await model.origin.hash(), family: model.architecture.family },
          ...view.labels,
          edits: describeEdits(edits),
          precision: model.precision,
          versions: await versions(),
        }
        const input_ids: NDArray = { dtype: 'int64', shape: [1, ids.length], data: BigInt64Array.from(ids, BigInt) }
        await writeSafetensors(options.out, { input_ids, ...view.tensors }, { actlens: JSON.stringify(record) })
        context.note(`The lens was written to ${options.out}.`)
      }
      const { json, text } = view
      return { json: { model: model.origin.id, kind, ...json, ...(options.out === undefined ? {} : { out: options.out }) }, text }
    })
  },
})

/** What every block reads, and the end. */
const blockReads = (model: Model) => ['resid_pre.0', ...Array.from({ length: model.spec.layers }, (_, l) => `resid_post.${l}`)]
