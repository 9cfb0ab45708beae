/** @file `actlens export`: a model with its edits built in, as an ONNX file. */
import { UsageError } from '../../base/errors.ts'
import { defineCommand, modelArgument, type Outcome } from '../command.ts'
import { withModel } from '../model.ts'
import { checkOutput } from '../output.ts'

interface ExportOptions {
  readonly out: string
  readonly edits?: string
  readonly cache?: boolean
  readonly lastOnly?: boolean
  readonly external?: boolean
}

/** Options about a graph that is made here. */
const shaping = { cache: '--cache', lastOnly: '--last-only', external: '--external' } as const

export const command = defineCommand<{ model: string }, ExportOptions>({
  name: 'export',
  summary: 'Writes a model with its edits built in as a standard ONNX file that any ONNX Runtime runs.',
  example: 'export embedded --edits edits.json --cache --out edited.onnx',
  arguments: [modelArgument],
  options: [
    { flags: '--out <file>', doc: 'the ONNX file; weights of more than 1.5 GB go into a file beside it', required: true },
    { flags: '--edits <file>', doc: 'edits file: a JSON array of { op, site, params, where }' },
    { flags: '--cache', doc: 'takes past_key_values and gives out present, as exports for generation do' },
    { flags: '--last-only', doc: 'gives logits of the last token of each row alone' },
    { flags: '--external', doc: 'puts the weights into a file beside the graph at any size' },
  ],
  async run(context, args, options) {
    if (!/\.onnx$/i.test(options.out)) throw new UsageError(`--out must name a file that ends with .onnx, not '${options.out}'.`)
    await checkOutput(options.out)
    return withModel<Outcome>(
      context,
      args.model,
      options,
      async ({ model, edits }) => {
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
        const written = await model.export(options.out)
        return { json: { model: model.origin.id, edits: edits.length, ...written }, text: summary(written, edits.length) }
      },
    )
  },
})

const summary = ({ path, bytes, weights }: { path: string; bytes: number; weights?: string }, edits: number) =>
  `${path}: ${bytes} bytes, ${edits} edits${weights ? `, weights in ${weights}` : ''}\n`
