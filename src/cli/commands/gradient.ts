/** @file `actlens gradient`: gradients of a loss with respect to sites and parameters. */
import { UsageError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import { matchParameters } from '../../explore/index.ts'
import { writeSafetensors } from '../../models/formats/index.ts'
import { describeEdits } from '../../run/edits-file.ts'
import { type Loss, type Model, oneToken, tokenIn } from '../../run/index.ts'
import { defineCommand, integer, modelArgument, type OptionRow, type Outcome } from '../command.ts'
import { readInputs, tensorsOfRows } from '../inputs.ts'
import { type EditedModel, type EditedOnnx, withModel } from '../model.ts'
import { namesOnnx, onnxGradient, onnxInputs, onnxLoss } from '../onnx.ts'
import { checkOutput } from '../output.ts'
import { short, table } from '../table.ts'
import { encodeTexts, parseText, readJsonl, type TextOrIds } from '../texts.ts'
import { versions } from '../version.ts'
import { splitPatterns } from './run.ts'

interface Options {
  readonly text?: readonly TextOrIds[]
  readonly inputs?: string
  readonly data?: string
  readonly field?: string
  readonly of: string
  readonly at?: readonly string[]
  readonly parameters?: readonly string[]
  readonly position?: number
  readonly edits?: string
  readonly out: string
}

const options: readonly OptionRow[] = [
  { flags: '--text <text>', doc: 'a text, one row of the batch', parse: parseText, repeat: true, conflicts: ['inputs', 'data'] },
  {
    flags: '--inputs <file>',
    doc: 'safetensors with input_ids, attention_mask, pixel_values, decoder_input_ids …',
    conflicts: ['text', 'data'],
  },
  { flags: '--data <file>', doc: 'JSONL, a row a line: { "text" } or { "input_ids" }', conflicts: ['text', 'inputs'] },
  { flags: '--field <name>', doc: 'field of --data that holds the text (default: text)' },
  {
    flags: '--of <loss>',
    doc: "next-token (mean cross-entropy), mean-square (of logits or last states), logit:TOKEN or logit-difference:A,B, of an ONNX file also sum:SITE; tokens are texts of one token (' dog'), ids (7) or ids:7",
    required: true,
  },
  { flags: '--at <sites>', doc: "where: sites, aliases, patterns ('resid_post.*'), separated by commas", repeat: true },
  { flags: '--parameters <names>', doc: "parameters by their names in the checkpoint; '*' stands for any part of a name", repeat: true },
  {
    flags: '--position <n>',
    doc: 'position that logit and logit-difference look at, negative from the end (default: -1)',
    parse: integer(Number.MIN_SAFE_INTEGER),
  },
  { flags: '--edits <file>', doc: 'edits file: a JSON array of { op, site, params, where }' },
  { flags: '--out <file>', doc: 'safetensors file for grad.SITE and grad.param.NAME', required: true },
]

export const command = defineCommand<{ model: string }, Options>({
  name: 'gradient',
  summary: 'Differentiates a loss of a run with respect to activations and parameters, and stores the gradients.',
  example: "gradient embedded --text 'Once upon a time' --of next-token --at 'resid_post.*' --out gradients.safetensors",
  arguments: [modelArgument],
  options,
  async run(context, args, options) {
    const at = (options.at ?? []).flatMap(splitPatterns)
    if (at.length === 0 && !options.parameters)
      throw new UsageError('There is nothing to differentiate at: name sites with --at, or --parameters.')
    await checkOutput(options.out)
    const source = namesOnnx(args.model) && options.inputs !== undefined ? undefined : await readSource(options)
    const onModel = async ({ model, edits }: EditedModel): Promise<Outcome> => {
      if (!source) throw new UsageError(`${args.model} is no ONNX file.`)
      if ('others' in source && source.others.length > 0)
        context.warn(`${options.inputs} also holds ${source.others.join(', ')}; these are no inputs and were not used.`)
      const tensors = 'tensors' in source ? source.tensors : tensorsOfRows(encodeTexts(model, source.texts, source.what), padOf(model))
      const of = lossOf(model, options.of, options.position)
      const parameters = (options.parameters ?? []).flatMap((p) => matchParameters(model, p))
      const result = await model.gradient({ of, at, parameters: [...new Set(parameters)] }, tensors)
      const arrays: [string, NDArray][] = [
        ...Object.entries(result.sites).map(([site, g]): [string, NDArray] => [`grad.${site}`, gradientArray(g)]),
        ...Object.entries(result.parameters).map(([name, g]): [string, NDArray] => [`grad.param.${name}`, g]),
      ]
      const loss: NDArray = { dtype: 'float32', shape: [], data: Float32Array.of(result.value) }
      const record = {
        of,
        model: { id: model.origin.id, hash: await model.origin.hash(), family: model.architecture.family },
        edits: describeEdits(edits),
        precision: model.precision,
        versions: await versions(),
      }
      await writeSafetensors(options.out, { ...tensors, loss, ...Object.fromEntries(arrays) }, { actlens: JSON.stringify(record) })
      context.note(`${arrays.length} gradients were written to ${options.out}.`)
      const rows = arrays.map(([name, a]) => ({ name, shape: a.shape, norm: normOf(a.data as Float32Array) }))
      return {
        json: { model: model.origin.id, of, value: result.value, gradients: rows, out: options.out },
        text: `${options.of} = ${short(result.value)}\n\n${table(
          ['gradient', 'shape', 'norm'],
          rows.map((r) => [r.name, `[${r.shape.join(', ')}]`, short(r.norm)]),
        )}`,
      }
    }
    const onOnnx = async (loaded: EditedOnnx): Promise<Outcome> => {
      const of = onnxLoss(options.of, options.position)
      const inputs = await onnxInputs(loaded.model, {
        inputs: options.inputs,
        texts: source && 'texts' in source ? source.texts : undefined,
      })
      return onnxGradient(context, loaded, { of, at, parameters: options.parameters ?? [], out: options.out, inputs })
    }
    return withModel(context, args.model, options, onModel, onOnnx)
  },
})

function normOf(data: Float32Array): number {
  let sum = 0
  for (const v of data) sum += v * v
  return Math.sqrt(sum)
}

/** A gradient at full batch shape, with zeros at padding: a site whose padding is -inf has no gradient there either. */
function gradientArray({ dtype, shape, data }: NDArray<Float32Array>): NDArray {
  return { dtype, shape, data: data.map((v) => (v === Number.NEGATIVE_INFINITY ? 0 : v)) }
}

async function readSource(o: Options) {
  if (o.field !== undefined && o.data === undefined) throw new UsageError('--field says where the text of --data is; give --data, too.')
  if (o.inputs !== undefined) return await readInputs(o.inputs)
  if (o.data !== undefined) return { texts: await readJsonl(o.data, { fields: [o.field ?? 'text'] }), what: o.data }
  if (o.text !== undefined) return { texts: o.text, what: '--text' }
  throw new UsageError('There is nothing to run on: give --text, --inputs or --data.')
}

const padOf = (model: Model) => (model.hasTokenizer ? (model.tokenizer.pad ?? 0) : 0)

/** The loss that `--of` means. */
function lossOf(model: Model, text: string, position: number | undefined): Loss {
  const [, kind, rest] = /^([a-z-]+)(?::([\s\S]*))?$/.exec(text) ?? []
  const place = position === undefined ? {} : { position }
  if ((kind === 'next-token' || kind === 'mean-square') && rest === undefined) {
    if (position !== undefined) throw new UsageError(`--position is for logit and logit-difference; ${kind} looks at all positions.`)
    return { kind }
  }
  if (kind === 'logit' && rest) return { kind, token: oneToken(model, rest, '--of', true), ...place }
  if (kind === 'logit-difference' && rest) return { kind, tokens: twoTokens(model, rest), ...place }
  throw new UsageError(`'${text}' is no loss: write next-token, mean-square, logit:TOKEN or logit-difference:A,B.`)
}

/** The two tokens of `A,B`; a comma may be part of either. */
function twoTokens(model: Model, text: string): readonly [number, number] {
  const splits = [...text.matchAll(/,/g)].map((m) => [text.slice(0, m.index), text.slice(m.index + 1)] as const)
  const whole = splits.filter(([a, b]) => a !== '' && b !== '')
  if (whole.length === 1) {
    const [a, b] = whole[0] as readonly [string, string]
    return [oneToken(model, a, '--of', true), oneToken(model, b, '--of', true)]
  }
  const fitting = whole.flatMap(([a, b]) => {
    const pair = [tokenIn(model, a, true), tokenIn(model, b, true)] as const
    return typeof pair[0] === 'number' && typeof pair[1] === 'number' ? [[pair[0], pair[1]] as const] : []
  })
  if (fitting.length === 1) return fitting[0] as readonly [number, number]
  throw new UsageError(
    `logit-difference needs two tokens separated by a comma, such as 'logit-difference: dog, cat'; '${text}' is not that.`,
  )
}
