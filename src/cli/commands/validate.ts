/** @file `actlens validate`: recorded reference values against ours. */
import { type TensorCheck, validate } from '../../run/validate.ts'
import { widening } from '../../run/validate-compare.ts'
import { defineCommand, modelArgument } from '../command.ts'
import { exitCodes } from '../io.ts'
import { withModel } from '../model.ts'
import { short, table } from '../table.ts'

interface Options {
  readonly against: string
  readonly file?: string
}

export const command = defineCommand<{ model: string }, Options>({
  name: 'validate',
  summary: 'Compares a model with recorded reference values: one line per tensor, its error, pass or not.',
  example: 'validate shared/goldens/llama --against shared/goldens/llama',
  arguments: [modelArgument],
  options: [
    { flags: '--against <folder>', doc: 'folder with golden.safetensors (and golden.json)', required: true },
    { flags: '--file <name>', doc: 'name of the file in the folder (default: golden.safetensors)' },
  ],
  run: (context, args, options) =>
    withModel(context, args.model, {}, async ({ model }) => {
      const { io, onProgress } = context
      const result = await validate(model, options.against, {
        signal: io.signal,
        onProgress,
        ...(options.file === undefined ? {} : { file: options.file }),
      })
      const { passed, failed, notChecked } = result
      const wider =
        result.precision === 'f32'
          ? ''
          : ` Tolerances are ${widening[result.precision]} times those of f32, since this is ${result.precision}.`
      const counts = `${passed} passed, ${failed} failed, ${notChecked} not checked.${wider}\n`
      return {
        json: { ...result, checks: result.checks.map(jsonOf) },
        text: table(['tensor', 'shape', 'error', 'tolerance', 'result', ''], result.checks.map(lineOf)) + counts,
        ...(failed > 0 ? { code: exitCodes.failed } : {}),
      }
    }),
})

/** JSON has no NaN: an error that is none is null, and the note says why. */
function jsonOf(check: TensorCheck) {
  return Number.isNaN(check.error) ? { ...check, error: null } : check
}

function lineOf(check: TensorCheck): string[] {
  const { name, shape, status, error, tolerance, note } = check
  const shown = (value: number | undefined) => (value === undefined ? '' : short(value))
  return [name, `[${shape.join(', ')}]`, shown(error), shown(tolerance), status, note ?? '']
}
