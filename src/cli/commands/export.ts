/** @file `actlens export`: a model with its edits built in, as an ONNX file. */
import { ModelError } from '../../base/errors.ts'
import { defineCommand, modelArgument, type Outcome } from '../command.ts'
import { withModel } from '../model.ts'
import { checkOutput } from '../output.ts'

export const command = defineCommand<{ model: string }, { readonly out: string; readonly edits?: string }>({
  name: 'export',
  summary: 'Writes an ONNX model with its edits built in, as a standard file that any ONNX Runtime runs.',
  example: 'export model.onnx --edits edits.json --out edited.onnx',
  arguments: [modelArgument],
  options: [
    { flags: '--out <file>', doc: 'the ONNX file; weights of more than 1.5 GB go into a file beside it', required: true },
    { flags: '--edits <file>', doc: 'edits file: a JSON array of { op, site, params }' },
  ],
  async run(context, args, options) {
    await checkOutput(options.out)
    return withModel<Outcome>(
      context,
      args.model,
      options,
      async () => {
        throw new ModelError(`${args.model} is not an ONNX file; so far only ONNX files are exported, with their edits built in.`)
      },
      async ({ model, edits }) => {
        const written = await model.export(options.out)
        return {
          json: { model: model.origin.id, edits: edits.length, ...written },
          text: `${written.path}: ${written.bytes} bytes, ${edits.length} edits${written.weights ? `, weights in ${written.weights}` : ''}\n`,
        }
      },
    )
  },
})
