/** @file `actlens generate`: text that is streamed as it is written. */
import { CancelledError, UsageError } from '../../base/errors.ts'
import { checkSampling } from '../../models/sampling.ts'
import { encodeChat } from '../../models/text/index.ts'
import type { GenerateOptions, Generation, Model, OnnxModel } from '../../run/index.ts'
import { type CommandContext, defineCommand, integer, modelArgument, number, type OptionRow, type Outcome } from '../command.ts'
import { exitCodes } from '../io.ts'
import { type EditedModel, type EditedOnnx, withModel } from '../model.ts'
import { streamOnnx } from '../onnx.ts'
import { encodeTexts, parseText, readTextFile, type TextOrIds } from '../texts.ts'

interface Options {
  readonly prompt?: TextOrIds
  readonly promptFile?: string
  readonly chat?: string
  readonly edits?: string
  readonly maxNewTokens?: number
  readonly temperature?: number
  readonly topP?: number
  readonly topK?: number
  readonly minP?: number
  readonly repetitionPenalty?: number
  readonly stop?: readonly string[]
  readonly seed?: number
}

const prompts = ['prompt', 'promptFile', 'chat']
const others = (own: string) => prompts.filter((p) => p !== own)

const options: readonly OptionRow[] = [
  { flags: '--prompt <text>', doc: 'text to go on from (default: the beginning of a text)', parse: parseText, conflicts: others('prompt') },
  {
    flags: '--prompt-file <file>',
    doc: "file that holds the prompt, '-' for standard input; one line break at its end is dropped",
    conflicts: others('promptFile'),
  },
  { flags: '--chat <text>', doc: "message of a user, in the model's chat template", conflicts: others('chat') },
  { flags: '--edits <file>', doc: 'edits file: a JSON array of { op, site, params, where }' },
  { flags: '--max-new-tokens <n>', doc: 'most tokens to write (default: 128)', parse: integer(1) },
  { flags: '--temperature <x>', doc: '0 (the default) always takes the likeliest token', parse: number },
  { flags: '--top-p <x>', doc: 'draw from the smallest set of tokens that has this probability', parse: number },
  { flags: '--top-k <n>', doc: 'draw from this many likeliest tokens', parse: integer(1) },
  { flags: '--min-p <x>', doc: 'draw from tokens at least this fraction as likely as the likeliest', parse: number },
  { flags: '--repetition-penalty <x>', doc: 'above 1, tokens that are there already become less likely', parse: number },
  { flags: '--stop <text>', doc: 'end where this text appears', repeat: true },
  { flags: '--seed <n>', doc: 'seed of the draws (default: 0)', parse: integer(0, 2 ** 32 - 1) },
]

export const command = defineCommand<{ model: string }, Options>({
  name: 'generate',
  summary: 'Writes on from a prompt or answers a chat message, streamed as it comes.',
  example: "generate embedded --prompt 'Once upon a time' --max-new-tokens 60 --temperature 0.8 --seed 1",
  arguments: [modelArgument],
  options,
  async run(context, args, options) {
    noteUnused(context, options)
    refuseIds(options)
    const settings = generateOptions(context, options)
    checkSettings(settings)
    const file = options.promptFile === undefined ? undefined : await readPrompt(context, options.promptFile)
    const onModel = async ({ model }: EditedModel): Promise<Outcome> => {
      const generation = model.generate({ ids: promptIds(model, options, file) }, settings)
      await stream(context, model, generation)
      const { text, tokens, promptTokens, finishReason, tokensPerSecond, unfired } = await generation.result()
      for (const sentence of unfired) context.warn(sentence)
      context.note(
        `${tokens.length} tokens after ${promptTokens}, ${tokensPerSecond.toFixed(1)} tokens a second, ended by ${finishReason}.`,
      )
      return {
        json: { text, tokens, promptTokens, finishReason, tokensPerSecond, unfired },
        ...(finishReason === 'cancelled' ? { code: exitCodes.interrupted } : {}),
      }
    }
    const onOnnx = async ({ model }: EditedOnnx): Promise<Outcome> => {
      if (options.stop) throw new UsageError('--stop is not served for ONNX files; leave it out.')
      const prompt = promptIds(model, options, file)
      return { json: await streamOnnx(context, model, prompt, settings) }
    }
    return withModel(context, args.model, options, onModel, onOnnx)
  },
})

/** Refuses settings out of range before a model is loaded, by the names that the user wrote. */
function checkSettings(settings: GenerateOptions): void {
  try {
    checkSampling(settings)
  } catch (error) {
    throw error instanceof UsageError ? new UsageError(error.message.replace(/^\w+/, flagOf), { cause: error }) : error
  }
}

/** Settings of the draw change nothing where nothing is drawn. */
function noteUnused(context: CommandContext, options: Options): void {
  if ((options.temperature ?? 0) > 0) return
  const unused = (['topP', 'topK', 'minP', 'seed'] as const).filter((key) => options[key] !== undefined)
  if (unused.length > 0)
    context.note(
      `At temperature 0 the likeliest token is always taken, so ${unused.map((k) => flagOf(k)).join(', ')} changed nothing; set --temperature.`,
    )
}

const flagOf = (key: string) => `--${key.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`

function refuseIds(options: Options): void {
  if (options.chat?.startsWith('ids:'))
    throw new UsageError('--chat takes text for the chat template; give token ids to --prompt, with the template already in them.')
  if (options.chat === '') throw new UsageError('The message of --chat is empty; give at least one character.')
  const stop = options.stop?.find((s) => s === '' || s.startsWith('ids:'))
  if (stop !== undefined) throw new UsageError(`--stop takes a text that ends the generation, not '${stop}'.`)
}

async function readPrompt({ io }: CommandContext, path: string): Promise<TextOrIds> {
  let text: string
  if (path === '-') {
    const pieces: Buffer[] = []
    for await (const piece of io.stdin) pieces.push(Buffer.from(piece as Uint8Array))
    text = Buffer.concat(pieces).toString('utf8')
  } else text = await readTextFile(path)
  return parseText(text.replace(/\r?\n$/, ''))
}

function promptIds(model: Model | OnnxModel, options: Options, file: TextOrIds | undefined): readonly number[] {
  if (options.chat !== undefined) return encodeChat(model.tokenizer, [{ role: 'user', content: options.chat }])
  const given = options.prompt ?? file
  if (given !== undefined) return encodeTexts(model, [given], options.prompt === undefined ? '--prompt-file' : '--prompt')[0] as number[]
  const start = model.hasTokenizer ? model.tokenizer.encode('') : []
  if (start.length === 0) throw new UsageError('This model has no token that begins a text: give a --prompt.')
  return start
}

function generateOptions(context: CommandContext, options: Options): GenerateOptions {
  const { maxNewTokens, temperature, topP, topK, minP, repetitionPenalty, stop, seed } = options
  const given = Object.entries({ maxNewTokens, temperature, topP, topK, minP, repetitionPenalty, stop, seed }).filter(
    ([, v]) => v !== undefined,
  )
  return { ...(Object.fromEntries(given) as GenerateOptions), signal: context.io.signal }
}

/** Writes the text, or without a tokenizer the ids, as they come. A cancelled generation ends here; what it wrote is kept. */
async function stream(context: CommandContext, model: Model, generation: Generation): Promise<void> {
  let written = ''
  const write = async (piece: string) => {
    written = piece === '' ? written : piece
    await context.write(piece)
  }
  try {
    for await (const step of generation.steps())
      await write(model.hasTokenizer ? step.text : `${written === '' ? 'ids:' : ','}${step.token}`)
  } catch (error) {
    if (!(error instanceof CancelledError)) throw error
  }
  if (written !== '' && !written.endsWith('\n')) await context.write('\n')
}
