/** @file `actlens export`: a model with its edits built in, as an ONNX file, or with changed weights, as a Hugging Face folder. */
import { readFile } from 'node:fs/promises'
import { extname } from 'node:path'
import { messageOf, UsageError } from '../../base/errors.ts'
import { readFailure } from '../../base/files.ts'
import { readPeftAdapter } from '../../models/peft.ts'
import { foldEdits, type Model, type SaveType, type Transform, transformKinds, transformOf } from '../../run/index.ts'
import { type CommandContext, defineCommand, modelArgument, type Outcome } from '../command.ts'
import { withModel } from '../model.ts'
import { checkOutput } from '../output.ts'

interface ExportOptions {
  readonly out: string
  readonly edits?: string
  readonly cache?: boolean
  readonly lastOnly?: boolean
  readonly external?: boolean
  readonly transform?: readonly string[]
  readonly adapter?: readonly string[]
  readonly dtype?: SaveType
}

/** Options about the weights of a folder. */
const ofFolders = { transform: '--transform', adapter: '--adapter', dtype: '--dtype' } as const

/** Options about a graph that is made here. */
const shaping = { cache: '--cache', lastOnly: '--last-only', external: '--external' } as const

export const command = defineCommand<{ model: string }, ExportOptions>({
  name: 'export',
  summary: 'Writes a model with its edits built in as a standard ONNX file, or with changed weights as a Hugging Face folder.',
  example: 'export embedded --edits edits.json --cache --out edited.onnx',
  arguments: [modelArgument],
  options: [
    {
      flags: '--out <file>',
      doc: 'an ONNX file (.onnx; weights of more than 1.5 GB go beside it), or a Hugging Face folder',
      required: true,
    },
    { flags: '--edits <file>', doc: 'edits file; for a folder, affine maps of every token are folded into the weights, others refused' },
    { flags: '--cache', doc: 'takes past_key_values and gives out present, as exports for generation do' },
    { flags: '--last-only', doc: 'gives logits of the last token of each row alone' },
    { flags: '--external', doc: 'puts the weights into a file beside the graph at any size' },
    {
      flags: '--transform <transform>',
      doc: `changes the weights: a name, JSON { "kind", "params" }, or a file of it (.json); ${Object.keys(transformKinds).join(', ')}`,
      repeat: true,
    },
    { flags: '--adapter <folder>', doc: 'merges a PEFT adapter into the weights, before the transforms', repeat: true },
    {
      flags: '--dtype <dtype>',
      doc: 'type of the numbers in a folder (default: that of the checkpoint, else f32)',
      choices: ['f32', 'f16', 'bf16'],
    },
  ],
  async run(context, args, options) {
    const onnx = /\.onnx$/i.test(options.out)
    const [refused, target] = onnx ? [ofFolders, 'a folder'] : [shaping, 'an ONNX file']
    for (const [name, flag] of Object.entries(refused))
      if (options[name as keyof ExportOptions] !== undefined) throw new UsageError(`${flag} is for ${target}; --out is '${options.out}'.`)
    if (/\.(bin|gguf|safetensors|pth?|npz)$/i.test(options.out))
      throw new UsageError(`A model is written as an ONNX file (.onnx) or into a folder, not as '${options.out}'.`)
    if (onnx) await checkOutput(options.out)
    const transforms = [
      ...(await Promise.all((options.adapter ?? []).map(async (f) => transformOf('merge_lora', { adapter: await readPeftAdapter(f) })))),
      ...(await Promise.all((options.transform ?? []).map(readTransform))),
    ]
    return withModel<Outcome>(
      context,
      args.model,
      options,
      async ({ model, edits }) => {
        if (!onnx) return toFolder(context, model, transforms, options)
        const { cache = false, lastOnly = false, external = false } = options
        const written = await model.export(options.out, { cache, lastOnly, external })
        const { inputs, outputs, opset, contrib } = written
        return {
          json: { model: model.origin.id, edits: edits.length, ...written },
          text: `${summary(written, edits.length)}inputs: ${inputs.join(', ')}\noutputs: ${outputs.join(', ')}\noperators: opset ${opset}${contrib.length > 0 ? `; of ONNX Runtime (com.microsoft): ${contrib.join(', ')}` : ''}\n`,
        }
      },
      async ({ model, edits }) => {
        for (const [name, flag] of Object.entries(shaping))
          if (options[name as keyof typeof shaping])
            throw new UsageError(
              `${args.model} is an ONNX file, which is written with its own inputs, outputs and weights; leave ${flag} out.`,
            )
        if (!onnx) throw new UsageError(`${args.model} is an ONNX file, which is written as one; give --out a name that ends with .onnx.`)
        const written = await model.export(options.out)
        return { json: { model: model.origin.id, edits: edits.length, ...written }, text: summary(written, edits.length) }
      },
    )
  },
})

const summary = ({ path, bytes, weights }: { path: string; bytes: number; weights?: string }, edits: number) =>
  `${path}: ${bytes} bytes, ${edits} edits${weights ? `, weights in ${weights}` : ''}\n`

async function toFolder(
  { io, onProgress, note }: CommandContext,
  model: Model,
  given: readonly Transform[],
  options: ExportOptions,
): Promise<Outcome> {
  // Edits act on the model as it is after the transforms.
  const changed = given.length > 0 ? await model.plain.transformed(...given) : model.plain
  const whole = model.edits.length > 0 ? await changed.transformed(foldEdits(changed, model.edits)) : changed
  try {
    const saved = await whole.save(options.out, {
      signal: io.signal,
      onProgress,
      ...(options.dtype === undefined ? {} : { dtype: options.dtype }),
    })
    for (const line of saved.notes) note(line)
    const { files, bytes, dtype, notes } = saved
    const kinds = whole.origin.transforms.map((t) => t.kind)
    return {
      json: { model: whole.origin.id, out: options.out, transforms: kinds, files, bytes, dtype, notes },
      text: `${options.out}: ${files.join(', ')}; ${bytes} bytes of ${dtype}${kinds.length > 0 ? `, after ${kinds.join(', ')}` : ''}\n`,
    }
  } finally {
    await whole.dispose()
  }
}

/** A transform as the user wrote it: a name, JSON, or a file of JSON. */
async function readTransform(text: string): Promise<Transform> {
  const isFile = extname(text) === '.json'
  if (!isFile && !text.trimStart().startsWith('{')) return transformOf(text as 'fold_norms', {})
  const json = isFile
    ? await readFile(text, 'utf8').catch((error: unknown) => {
        throw readFailure(error, text)
      })
    : text
  let value: unknown
  try {
    value = JSON.parse(json)
  } catch (error) {
    throw new UsageError(`${isFile ? text : '--transform'} is not valid JSON (${messageOf(error)}).`, { cause: error })
  }
  const { kind, params = {}, ...others } = (typeof value === 'object' && value !== null ? value : {}) as Record<string, unknown>
  if (typeof kind !== 'string' || typeof params !== 'object' || Object.keys(others).length > 0)
    throw new UsageError(`A transform is written as { "kind", "params" }, not as ${json.slice(0, 80)}.`)
  return transformOf(kind as 'fold_norms', params as object)
}
