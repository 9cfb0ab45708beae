/** @file Options of `actlens generate` beyond the prompt: how tokens are chosen, and what the text is held to. */
import { InvalidArgumentError } from 'commander'
import { UsageError } from '../../base/errors.ts'
import { readJson } from '../../base/files.ts'
import { checkSampling } from '../../models/sampling.ts'
import type { GenerateOptions } from '../../run/index.ts'
import { integer, number, type OptionRow } from '../command.ts'
import { parseText, readTextFile, type TextOrIds } from '../texts.ts'

/** Values of these options. */
export interface ChoiceOptions {
  readonly maxNewTokens?: number
  readonly minNewTokens?: number
  readonly temperature?: number
  readonly topP?: number
  readonly topK?: number
  readonly minP?: number
  readonly repetitionPenalty?: number
  readonly presencePenalty?: number
  readonly frequencyPenalty?: number
  readonly stop?: readonly string[]
  readonly seed?: number
  readonly begin?: TextOrIds
  readonly ban?: readonly TextOrIds[]
  readonly logProbabilities?: boolean
  readonly alternatives?: number
  readonly beams?: number
  readonly lengthPenalty?: number
  readonly earlyStopping?: boolean | 'never'
  readonly returned?: number
  readonly jsonSchema?: string
  readonly grammar?: string
  readonly regex?: string
  readonly draft?: string
  readonly draftTokens?: number
  readonly cache?: string
  readonly saveCache?: string
}

const constraints = ['jsonSchema', 'grammar', 'regex']
const otherConstraints = (own: string) => constraints.filter((c) => c !== own)

/** Their rows. */
export const choiceOptions: readonly OptionRow[] = [
  { flags: '--max-new-tokens <n>', doc: 'most tokens to write (default: 128)', parse: integer(1) },
  { flags: '--min-new-tokens <n>', doc: 'fewest tokens to write before the text may end', parse: integer(1) },
  { flags: '--temperature <x>', doc: '0 (the default) always takes the likeliest token', parse: number },
  { flags: '--top-p <x>', doc: 'draw from the smallest set of tokens that has this probability', parse: number },
  { flags: '--top-k <n>', doc: 'draw from this many likeliest tokens', parse: integer(1) },
  { flags: '--min-p <x>', doc: 'draw from tokens at least this fraction as likely as the likeliest', parse: number },
  { flags: '--repetition-penalty <x>', doc: 'above 1, tokens that are there already become less likely', parse: number },
  { flags: '--presence-penalty <x>', doc: 'taken from the logits of tokens that were written already', parse: number },
  { flags: '--frequency-penalty <x>', doc: 'taken from the logits of written tokens, once for each time', parse: number },
  { flags: '--stop <text>', doc: 'end where this text appears', repeat: true },
  { flags: '--seed <n>', doc: 'seed of the draws (default: 0)', parse: integer(0, 2 ** 32 - 1) },
  { flags: '--begin <text>', doc: 'what the answer must begin with', parse: parseText },
  { flags: '--ban <text>', doc: 'tokens that must not come in a row', parse: parseText, repeat: true },
  { flags: '--log-probabilities', doc: "with --json, the logarithm of each token's probability" },
  { flags: '--alternatives <n>', doc: 'with --json, this many likeliest tokens at each place', parse: integer(1) },
  { flags: '--beams <n>', doc: 'beam search over this many sequences', parse: integer(2) },
  { flags: '--length-penalty <x>', doc: 'score of a beam: log-probability by length to this power (default: 1)', parse: number },
  {
    flags: '--early-stopping <when>',
    doc: 'end a beam search at once when enough sequences have ended (yes), when none is expected to do better (no, the default), or when none can (never)',
    parse: (text) => earlyStopping(text),
  },
  { flags: '--returned <n>', doc: 'with --json, this many sequences of a beam search', parse: integer(1) },
  { flags: '--json-schema <file>', doc: 'write JSON that this schema describes', conflicts: otherConstraints('jsonSchema') },
  { flags: '--grammar <file>', doc: "write a text of this grammar: EBNF with the rule 'root'", conflicts: otherConstraints('grammar') },
  { flags: '--regex <pattern>', doc: 'write a text that this regular expression matches as a whole', conflicts: otherConstraints('regex') },
  { flags: '--draft <model>', doc: 'a smaller model of the same vocabulary that guesses ahead' },
  { flags: '--draft-tokens <n>', doc: 'tokens that it guesses at a time (default: 4)', parse: integer(1) },
  { flags: '--cache <file>', doc: 'go on from keys and values that --save-cache has kept: the prompt must begin with their tokens' },
  { flags: '--save-cache <file>', doc: 'keep the keys and values of prompt and answer (safetensors)' },
]

function earlyStopping(text: string): boolean | 'never' {
  const values: Readonly<Record<string, boolean | 'never'>> = { yes: true, no: false, never: 'never' }
  if (!Object.hasOwn(values, text)) throw new InvalidArgumentError('It must be yes, no or never.')
  return values[text] as boolean | 'never'
}

/** The name of an option on the command line. */
export const flagOf = (key: string) => `--${key.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`

/** Options that need the library's own models. */
const beyondOnnx = [
  'minNewTokens',
  'stop',
  'begin',
  'ban',
  'logProbabilities',
  'alternatives',
  'beams',
  ...constraints,
  'draft',
  'cache',
  'saveCache',
] as const

/** Refuses what ONNX files are not served with. */
export function refuseBeyondOnnx(options: ChoiceOptions): void {
  const given = beyondOnnx.find((key) => options[key as keyof ChoiceOptions] !== undefined)
  if (given) throw new UsageError(`${flagOf(given)} is not served for ONNX files; leave it out.`)
}

/** Settings of a generation that need no model, checked by the names that the user wrote; files are read. */
export async function settingsOf(options: ChoiceOptions): Promise<GenerateOptions> {
  refuseLone(options)
  const { beams, lengthPenalty, earlyStopping: early, returned, jsonSchema, grammar, regex } = options
  const { draft: _, draftTokens: __, cache: ___, saveCache: ____, ...plain } = options
  const direct = Object.entries(plain).filter(([key, v]) => v !== undefined && !held.includes(key))
  const settings: GenerateOptions = {
    ...(Object.fromEntries(direct) as GenerateOptions),
    ...(beams ? { beams: { count: beams, ...defined({ lengthPenalty, earlyStopping: early, returned }) } } : {}),
    ...(jsonSchema === undefined ? {} : { constraint: { jsonSchema: await readJson(jsonSchema) } }),
    ...(grammar === undefined ? {} : { constraint: { grammar: await readTextFile(grammar) } }),
    ...(regex === undefined ? {} : { constraint: { regex } }),
  }
  try {
    checkSampling(settings)
  } catch (error) {
    throw error instanceof UsageError ? new UsageError(error.message.replace(/^\w+/, flagOf), { cause: error }) : error
  }
  return settings
}

/** Options that become others, or none. */
const held: readonly string[] = [
  'beams',
  'lengthPenalty',
  'earlyStopping',
  'returned',
  ...constraints,
  'prompt',
  'promptFile',
  'chat',
  'edits',
]

const defined = <T extends object>(values: T) => Object.fromEntries(Object.entries(values).filter(([, v]) => v !== undefined)) as Partial<T>

/** Refuses options that mean nothing without another one. */
function refuseLone(options: ChoiceOptions): void {
  const needs: readonly (readonly [keyof ChoiceOptions, keyof ChoiceOptions])[] = [
    ['lengthPenalty', 'beams'],
    ['earlyStopping', 'beams'],
    ['returned', 'beams'],
    ['draftTokens', 'draft'],
  ]
  const lone = needs.find(([key, other]) => options[key] !== undefined && options[other] === undefined)
  if (lone) throw new UsageError(`${flagOf(lone[0])} means nothing without ${flagOf(lone[1])}; give both, or none.`)
}
