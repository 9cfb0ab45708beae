/** @file `actlens run`: one forward pass, its taps shown and stored. */
import { listed, throwIfCancelled, UsageError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import { openSafetensors, writeSafetensors } from '../../models/formats/index.ts'
import { describeEdits } from '../../run/edits-file.ts'
import type { Activation, Model, ModelTensors, Start } from '../../run/index.ts'
import { type CommandContext, defineCommand, modelArgument, type OptionRow, type Outcome } from '../command.ts'
import { type InputsFile, readImages, readInputs, tensorsOfRows } from '../inputs.ts'
import { type EditedModel, type EditedOnnx, withModel } from '../model.ts'
import { namesOnnx, onnxInputs, onnxRun } from '../onnx.ts'
import { checkOutput } from '../output.ts'
import { type NextToken, statisticsOf, type TensorStatistics, topTokens } from '../statistics.ts'
import { quoted, short, table } from '../table.ts'
import { encodeTexts, parseText, readJsonl, type TextOrIds } from '../texts.ts'
import { versions } from '../version.ts'

interface Options {
  readonly text?: readonly TextOrIds[]
  readonly inputs?: string
  readonly data?: string
  readonly image?: readonly string[]
  readonly field?: string
  readonly taps?: readonly string[]
  readonly edits?: string
  readonly from?: string
  readonly out?: string
  readonly logits: boolean
}

const options: readonly OptionRow[] = [
  { flags: '--text <text>', doc: 'a text, one row of the batch', parse: parseText, repeat: true, conflicts: ['inputs', 'data'] },
  {
    flags: '--inputs <file>',
    doc: 'safetensors with input_ids, attention_mask, pixel_values, decoder_input_ids … under these Hugging Face names',
    conflicts: ['text', 'data'],
  },
  { flags: '--data <file>', doc: 'JSONL, a row a line: { "text" } or { "input_ids" }', conflicts: ['text', 'inputs'] },
  {
    flags: '--image <file>',
    doc: "a PNG or JPEG file, brought to size as the model's processor file says",
    repeat: true,
    conflicts: ['inputs'],
  },
  { flags: '--field <name>', doc: 'field of --data that holds the text (default: text)' },
  { flags: '--taps <sites>', doc: "what to read: sites, aliases, patterns ('resid_post.*'), separated by commas", repeat: true },
  { flags: '--edits <file>', doc: 'edits file: a JSON array of { op, site, params, where }' },
  {
    flags: '--from <site=file>',
    doc: 'begins at a site instead of with the tokens: its activation, [batch, pos, …], is the tensor of that name in a safetensors file',
  },
  { flags: '--out <file>', doc: 'safetensors file for the tensors, under canonical site names' },
  { flags: '--no-logits', doc: 'leave the logits out; the run ends at the last tap' },
]

/** Most likely tokens that are shown for a row. */
const shownTokens = 5

export const command = defineCommand<{ model: string }, Options>({
  name: 'run',
  summary: 'Runs a model once over texts or tensors; shows and stores the activations at the tapped sites.',
  example: "run embedded --text 'Once upon a time' --taps 'resid_post.*' --taps attn_probs.0 --out activations.safetensors",
  arguments: [modelArgument],
  options,
  async run(context, args, options) {
    const taps = (options.taps ?? []).flatMap(splitPatterns)
    if (!options.logits && taps.length === 0) throw new UsageError('With --no-logits there is nothing to compute: name sites with --taps.')
    if (options.out !== undefined) await checkOutput(options.out)
    const source = namesOnnx(args.model) && options.inputs !== undefined ? undefined : await readSource(options)
    const start = options.from === undefined ? undefined : await readStart(options.from)
    const onModel = async ({ model, edits }: EditedModel): Promise<Outcome> => {
      if (!source) throw new UsageError(`${args.model} is no ONNX file.`)
      const tensors = 'file' in source ? source.file.tensors : rowsOf(model, source)
      const ignored = 'file' in source ? source.file.others : []
      if (ignored.length > 0) context.warn(`${options.inputs} also holds ${ignored.join(', ')}; these are no inputs and were not used.`)
      const sites = [...new Set(taps.flatMap((t) => model.resolve(t).map((i) => i.site)))]
      const result = await model.run(tensors, {
        taps: sites,
        ...(options.logits ? {} : { logits: false }),
        signal: context.io.signal,
        ...(start ? { from: start.of(model) } : {}),
      })
      throwIfCancelled(context.io.signal)
      const values = new Map<string, Activation>(Object.entries(result.taps))
      if (result.logits) values.set('logits', result.logits)
      for (const sentence of result.unfired) context.warn(sentence)
      if (options.out !== undefined) {
        const record = await recordOf(context, model, describeEdits(edits), options)
        const arrays: [string, NDArray][] = [...values].map(([site, { dtype, shape, data }]) => [site, { dtype, shape, data }])
        await writeSafetensors(options.out, { ...tensors, ...Object.fromEntries(arrays) }, { actlens: JSON.stringify(record) })
        context.note(`${values.size} tensors were written to ${options.out}.`)
      }
      const statistics = [...values.values()].map(statisticsOf)
      const next = result.logits ? nextOf(model, result.logits) : []
      return {
        json: {
          model: model.origin.id,
          rows: result.tokens.length,
          tokens: result.tokens.map((r) => r.length),
          tensors: statistics,
          next,
          unfired: result.unfired,
          ignored,
          ...(options.out === undefined ? {} : { out: options.out }),
        },
        text: `${statisticsTable(statistics)}${next.map((n, row) => nextTable(n, next.length > 1 ? row : undefined)).join('')}`,
      }
    }
    const onOnnx = async (loaded: EditedOnnx): Promise<Outcome> => {
      if (start)
        throw new UsageError('--from starts a model of the vocabulary of sites; of an ONNX file, give what it computes as an input.')
      const texts = source && 'texts' in source ? source.texts : undefined
      const inputs = await onnxInputs(loaded.model, { inputs: options.inputs, texts })
      return onnxRun(context, loaded, { taps, outputs: options.logits, out: options.out, inputs })
    }
    return withModel(context, args.model, options, onModel, onOnnx)
  },
})

/** Reads `SITE=FILE`; the tensor may be stored under the site's canonical name or the name given. */
async function readStart(text: string): Promise<{ of(model: Model): Start }> {
  const at = text.indexOf('=')
  if (at < 1 || at === text.length - 1)
    throw new UsageError(`'${text}' must be a site and a file, such as resid_post.3=activations.safetensors.`)
  const [site, path] = [text.slice(0, at), text.slice(at + 1)]
  const store = await openSafetensors(path)
  try {
    const floats = [...store.tensors.values()].filter((t) => t.type === 'F32' || t.type === 'F16' || t.type === 'BF16').map((t) => t.name)
    const values = new Map<string, NDArray>()
    for (const name of floats) values.set(name, { dtype: 'float32', shape: store.get(name).shape, data: await store.readFloat32(name) })
    return {
      of: (model) => {
        const canonical = model.site(site).site
        const value = values.get(canonical) ?? values.get(site)
        if (!value)
          throw new UsageError(`${path} holds no tensor '${canonical}'${floats.length > 0 ? `; it holds ${listed(floats, 6)}` : ''}.`)
        return { site: canonical, value }
      },
    }
  } finally {
    await store.close()
  }
}

type Source =
  | { readonly file: InputsFile }
  | { readonly texts: readonly TextOrIds[]; readonly what: string; readonly images: readonly Uint8Array[] }

/** Where the input comes from; files are read before the model is loaded. */
async function readSource(options: Options): Promise<Source> {
  if (options.field !== undefined && options.data === undefined)
    throw new UsageError('--field says where the text of --data is; give --data, too.')
  if (options.inputs !== undefined) return { file: await readInputs(options.inputs) }
  const images = await readImages(options.image ?? [])
  if (options.data !== undefined)
    return { texts: await readJsonl(options.data, { fields: [options.field ?? 'text'] }), what: options.data, images }
  if (options.text !== undefined || images.length > 0) return { texts: options.text ?? [], what: '--text', images }
  throw new UsageError('There is nothing to run on: give --text, --inputs or --data, or --image.')
}

function rowsOf(model: Model, { texts, what, images }: Extract<Source, { texts: unknown }>): ModelTensors {
  const pad = model.hasTokenizer ? (model.tokenizer.pad ?? 0) : 0
  return {
    ...(texts.length > 0 ? tensorsOfRows(encodeTexts(model, texts, what), pad) : {}),
    ...(images.length > 0 ? { pixel_values: model.pixels(images) } : {}),
  }
}

/** `resid_post.{1,3},logits` as its patterns; commas in braces belong to the pattern. */
export function splitPatterns(text: string): string[] {
  const parts = text.split(/,(?![^{]*\})/).map((p) => p.trim())
  if (parts.some((p) => p === '')) throw new UsageError(`'${text}' holds an empty site name; separate sites by single commas.`)
  return parts
}

async function recordOf(context: CommandContext, model: Model, edits: readonly unknown[], options: Options) {
  return {
    model: { id: model.origin.id, hash: await model.origin.hash(), family: model.architecture.family },
    edits,
    ...(options.edits === undefined ? {} : { editsFile: options.edits }),
    ...(options.from === undefined ? {} : { from: options.from }),
    precision: model.precision,
    device: context.common.device ?? 'cpu',
    versions: await versions(),
  }
}

function statisticsTable(all: readonly TensorStatistics[]): string {
  const someInfinite = all.some((s) => s.notFinite > 0)
  return table(
    ['site', 'shape', 'mean', 'std', 'max |x|', 'norm', ...(someInfinite ? ['not finite'] : [])],
    all.map((s) => [
      s.site,
      `[${s.shape.join(', ')}]`,
      ...[s.mean, s.std, s.maxAbs, s.norm].map(short),
      ...(someInfinite ? [String(s.notFinite)] : []),
    ]),
  )
}

function nextOf(model: Model, logits: Activation): NextToken[][] {
  const piece = model.hasTokenizer ? (id: number) => model.tokenizer.piece(id) : undefined
  return logits.lengths.map((_, row) => topTokens(logits.at(row, -1), shownTokens, piece))
}

function nextTable(next: readonly NextToken[], row: number | undefined): string {
  const heading = row === undefined ? '\nnext token\n' : `\nnext token of row ${row}\n`
  const pieces = next.every((t) => t.piece !== undefined)
  const lines = next.map((t) => [
    String(t.id),
    ...(pieces ? [quoted(t.piece as string)] : []),
    `${(100 * t.probability).toFixed(1)} %`,
    short(t.logit),
  ])
  return heading + table(['id', ...(pieces ? ['piece'] : []), 'probability', 'logit'], lines)
}
