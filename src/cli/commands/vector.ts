/** @file `actlens vector`: a steering vector from two sets of examples. */

import { extname } from 'node:path'
import { InvalidArgumentError } from 'commander'
import { UsageError } from '../../base/errors.ts'
import { extractVector, type Position, type SteeringVector, saveVector, steeringMethod, steeringMethods } from '../../steer/index.ts'
import { defineCommand, modelArgument, type OptionRow } from '../command.ts'
import { withModel } from '../model.ts'
import { checkOutput } from '../output.ts'
import { short, table } from '../table.ts'
import { readTexts } from '../texts.ts'
import { splitPatterns } from './run.ts'

interface Options {
  readonly positive: string
  readonly negative: string
  readonly site: readonly string[]
  readonly method?: string
  readonly position?: Position
  readonly out: string
}

const methods = Object.entries(steeringMethods).map(([name, { doc }]) => `${name} (${doc.replace(/\.$/, '')})`)

const options: readonly OptionRow[] = [
  { flags: '--positive <file>', doc: 'examples of what is wanted: a text a line, or JSONL', required: true },
  { flags: '--negative <file>', doc: 'examples of what is not wanted', required: true },
  { flags: '--site <sites>', doc: "where: a site, or a pattern such as 'resid_post.*' for one vector each", required: true, repeat: true },
  { flags: '--method <name>', doc: `one of ${methods.join(', ')}; pca is pca-diff (default: mean-difference)` },
  {
    flags: '--position <position>',
    doc: 'token that is read: last, mean, or a number, negative from the end (default: last)',
    parse: position,
  },
  { flags: '--out <file>', doc: 'file for the vector: .safetensors, or .gguf for llama.cpp and repeng', required: true },
]

/** Fields of JSONL examples that may hold the text. */
const fields = ['text', 'prompt']

export const command = defineCommand<{ model: string }, Options>({
  name: 'vector',
  summary: 'Makes a steering vector from positive and negative examples and writes it to a file.',
  example: "vector embedded --positive happy.txt --negative sad.txt --site 'resid_post.*' --out happy.safetensors",
  arguments: [modelArgument],
  options,
  async run(context, args, { positive, negative, site, method = 'mean-difference', position, out }) {
    // The method and the paths are checked before a model is loaded for nothing.
    steeringMethod(method)
    if (!['.safetensors', '.gguf'].includes(extname(out).toLowerCase()))
      throw new UsageError(`The name ${out} does not say in which format to write; end it in .safetensors or .gguf.`)
    await checkOutput(out)
    const examples = { positive: await readTexts(positive, { fields }), negative: await readTexts(negative, { fields }) }
    return withModel(context, args.model, {}, async ({ model }) => {
      const { io, onProgress } = context
      const extracted = await extractVector(model, {
        ...examples,
        site: site.flatMap(splitPatterns),
        method,
        ...(position === undefined ? {} : { position }),
        signal: io.signal,
        onProgress,
      })
      const vector = fitting(extracted, out)
      if (vector !== extracted) context.warn(`${firstBlock} was left out, since llama.cpp refuses a GGUF file with a vector for block 0.`)
      await saveVector(out, vector)
      const sites = [...vector.norms].map(([name, norm]) => ({
        site: name,
        width: vector.at(name).length,
        norm,
        ...vector.record.fit?.[name],
      }))
      return {
        json: { model: model.origin.id, out, method: vector.record.method, sites, record: vector.record },
        text: `${table(
          ['site', 'width', 'norm', 'fit'],
          sites.map((s) => [s.site, String(s.width), short(s.norm), fitText(vector.record.fit?.[s.site])]),
        )}Written to ${out}.\n`,
      }
    })
  },
})

const firstBlock = 'resid_post.0'

/** What of a vector the format of the file can hold, where a pattern matched more. */
function fitting(vector: SteeringVector, out: string): SteeringVector {
  const rest = vector.sites.filter((s) => s !== firstBlock)
  return extname(out).toLowerCase() === '.gguf' && rest.length > 0 && rest.length < vector.sites.length ? vector.only(rest) : vector
}

export function position(text: string): Position {
  if (text === 'last' || text === 'mean') return text
  if (/^-?\d+$/.test(text)) return Number(text)
  throw new InvalidArgumentError('It must be last, mean, or a whole number (negative from the end).')
}

function fitText(facts: Readonly<Record<string, number>> | undefined): string {
  return Object.entries(facts ?? {})
    .map(([name, value]) => `${name} ${short(value)}`)
    .join(', ')
}
