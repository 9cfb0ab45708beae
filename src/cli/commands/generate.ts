/** @file `actlens generate`: text that is streamed as it is written. */
import { CancelledError, UsageError } from '../../base/errors.ts'
import { encodeChat } from '../../models/text/index.ts'
import { type Generation, type GenerationResult, load, type Model, type OnnxModel } from '../../run/index.ts'
import { type CommandContext, defineCommand, modelArgument, type OptionRow, type Outcome } from '../command.ts'
import { exitCodes } from '../io.ts'
import { type EditedModel, type EditedOnnx, withModel } from '../model.ts'
import { streamOnnx } from '../onnx.ts'
import { encodeTexts, parseText, readTextFile, type TextOrIds } from '../texts.ts'
import { type ChoiceOptions, choiceOptions, flagOf, refuseBeyondOnnx, settingsOf } from './generate-options.ts'

interface Options extends ChoiceOptions {
  readonly prompt?: TextOrIds
  readonly promptFile?: string
  readonly chat?: string
  readonly edits?: string
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
  ...choiceOptions,
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
    const settings = { ...(await settingsOf(options)), signal: context.io.signal }
    const file = options.promptFile === undefined ? undefined : await readPrompt(context, options.promptFile)
    const onModel = async ({ model }: EditedModel): Promise<Outcome> => {
      const draft = options.draft === undefined ? undefined : await draftModel(context, options.draft)
      try {
        const generation = model.generate(
          { ids: promptIds(model, options, file) },
          {
            ...settings,
            ...(draft ? { draft: { model: draft, ...(options.draftTokens ? { tokens: options.draftTokens } : {}) } } : {}),
            ...(options.cache === undefined ? {} : { cache: await model.readCache(options.cache) }),
          },
        )
        await stream(context, model, generation)
        const result = await generation.result()
        if (options.saveCache !== undefined && result.finishReason !== 'cancelled') await (await generation.cache()).save(options.saveCache)
        for (const sentence of result.unfired) context.warn(sentence)
        context.note(describe(result))
        return { json: result, ...(result.finishReason === 'cancelled' ? { code: exitCodes.interrupted } : {}) }
      } finally {
        await draft?.dispose()
      }
    }
    const onOnnx = async ({ model }: EditedOnnx): Promise<Outcome> => {
      refuseBeyondOnnx(options)
      const prompt = promptIds(model, options, file)
      return { json: await streamOnnx(context, model, prompt, settings) }
    }
    return withModel(context, args.model, options, onModel, onOnnx)
  },
})

/** What was done, in a line. */
function describe({ tokens, promptTokens, tokensPerSecond, finishReason, draft, cachedTokens }: GenerationResult): string {
  const guessed = draft ? ` ${draft.accepted} of ${draft.proposed} guesses held.` : ''
  const cached = cachedTokens ? ` (${cachedTokens} from the cache)` : ''
  return `${tokens.length} tokens after ${promptTokens}${cached}, ${tokensPerSecond.toFixed(1)} tokens a second, ended by ${finishReason}.${guessed}`
}

async function draftModel({ common, io, onProgress }: CommandContext, name: string): Promise<Model> {
  const { threads, device, precision } = common
  return load(name, {
    signal: io.signal,
    onProgress,
    ...(threads === undefined ? {} : { threads }),
    ...(device === undefined ? {} : { device }),
    ...(precision === undefined ? {} : { precision }),
  })
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
