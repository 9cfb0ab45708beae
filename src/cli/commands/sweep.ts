/** @file `actlens sweep`: which layer and which strength of a steering vector. */
import { InvalidArgumentError } from 'commander'
import { UsageError } from '../../base/errors.ts'
import { writeFileWhole } from '../../base/files.ts'
import { loadProbes } from '../../probe/index.ts'
import {
  classifierJudge,
  endpointJudge,
  loadVector,
  logOddsJudge,
  probeJudge,
  type SteeringJudge,
  type SteerSweep,
  type SweepCell,
  steeringMethod,
  steerSweep,
  trainTextClassifier,
  wordJudge,
} from '../../steer/index.ts'
import { canonicalJson } from '../../steer/record.ts'
import { type CommandContext, defineCommand, integer, modelArgument, number, type OptionRow } from '../command.ts'
import { withModel } from '../model.ts'
import { checkOutput } from '../output.ts'
import { short, table } from '../table.ts'
import { readTextFile, readTexts } from '../texts.ts'
import { splitPatterns } from './run.ts'

interface Options {
  readonly positive?: string
  readonly negative?: string
  readonly vector?: string
  readonly site?: readonly string[]
  readonly method?: string
  readonly strengths?: readonly number[]
  readonly unit?: 'vector' | 'activation'
  readonly prompts: string
  readonly neutral: string
  readonly words?: readonly string[]
  readonly againstWords?: readonly string[]
  readonly target?: string
  readonly against?: string
  readonly probe?: string
  readonly labelled?: string
  readonly endpoint?: string
  readonly judgeModel?: string
  readonly rubric?: string
  readonly tokens?: number
  readonly seeds?: number
  readonly temperature?: number
  readonly keepNorm?: boolean
  readonly folder?: string
  readonly out?: string
}

const options: readonly OptionRow[] = [
  { flags: '--positive <file>', doc: 'examples of what is wanted: a text a line, or JSONL' },
  { flags: '--negative <file>', doc: 'examples of what is not wanted' },
  {
    flags: '--vector <file>',
    doc: 'a vector from a file, instead of one from examples (which may be given, too, to check prompts against)',
  },
  { flags: '--site <sites>', doc: "sites to try (default: 'resid_post.*', or those of the vector)", repeat: true },
  { flags: '--method <name>', doc: 'how the vector is made, as in `vector` (default: mean-difference)' },
  { flags: '--strengths <list>', doc: 'strengths to try, separated by commas (default: 0.1,0.2,0.4,0.8)', parse: numbers },
  {
    flags: '--unit <unit>',
    doc: "what strength 1 is: as long as the site's activations in the median (default), or the vector as it is",
    choices: ['activation', 'vector'],
  },
  { flags: '--prompts <file>', doc: 'prompts to judge the effect on, none of them an example', required: true },
  { flags: '--neutral <file>', doc: 'texts that the steering should leave alone', required: true },
  { flags: '--words <words>', doc: 'judge: share of these words, separated by commas; happ* means all that begin so', parse: words },
  { flags: '--against-words <words>', doc: 'words that count against', parse: words },
  { flags: '--target <text>', doc: 'judge: how likely the model finds this text after each prompt' },
  { flags: '--against <text>', doc: 'less how likely it finds this one' },
  { flags: '--probe <file>', doc: 'judge: a probe that `probe` saved (its first site), read without steering' },
  { flags: '--labelled <file>', doc: 'judge: a classifier trained on these texts, JSONL of { text, label } with 1 for what is wanted' },
  { flags: '--endpoint <url>', doc: 'judge: a language model at an OpenAI-compatible address; the key is in OPENAI_API_KEY' },
  { flags: '--judge-model <name>', doc: 'name of that model' },
  { flags: '--rubric <text>', doc: 'what it is to judge' },
  { flags: '--tokens <n>', doc: 'tokens to write for each prompt (default: 40)', parse: integer(1) },
  { flags: '--seeds <n>', doc: 'times that each prompt is written on (default: 1)', parse: integer(1, 100) },
  { flags: '--temperature <number>', doc: '0 is greedy (default: 0.7)', parse: number },
  { flags: '--keep-norm', doc: 'gives activations the norm back that they had' },
  { flags: '--folder <folder>', doc: 'keeps finished cells here; a sweep that was broken off goes on' },
  { flags: '--out <file>', doc: 'JSON file for all numbers and texts' },
]

const fields = { fields: ['text', 'prompt'] }

export const command = defineCommand<{ model: string }, Options>({
  name: 'sweep',
  summary: 'Tries a steering vector at layers and strengths, measures effect and harm, and recommends one.',
  example: 'sweep embedded --positive happy.txt --negative sad.txt --prompts prompts.txt --neutral stories.txt --words happy,smile*,laugh*',
  arguments: [modelArgument],
  options,
  async run(context, args, o) {
    if (!o.vector && !(o.positive && o.negative))
      throw new UsageError('Say what to steer by: --positive and --negative with examples, or --vector with a file.')
    if (!o.positive !== !o.negative) throw new UsageError('Examples have two sides: give --positive and --negative.')
    if (o.vector && o.method) throw new UsageError('A vector from a file is made already; leave --method out.')
    if (o.method) steeringMethod(o.method)
    if (o.out) await checkOutput(o.out)
    const judge = await judgeOf(o)
    const examples =
      o.positive && o.negative
        ? { positive: await readTexts(o.positive, fields), negative: await readTexts(o.negative, fields) }
        : undefined
    const [prompts, neutral] = [await plainTexts(o.prompts), await plainTexts(o.neutral)]
    return withModel(context, args.model, {}, async ({ model }) => {
      const loaded = o.vector ? await loadVector(o.vector) : undefined
      await loaded?.check(model)
      const chosen = o.site?.flatMap(splitPatterns)
      const at = chosen ? [...new Set(chosen.flatMap((s) => model.resolve(s)).map((i) => i.site))] : undefined
      const vector = loaded
        ? at
          ? loaded.only(at)
          : loaded
        : { ...(examples as NonNullable<typeof examples>), site: at ?? 'resid_post.*', ...(o.method ? { method: o.method } : {}) }
      const sweep = await steerSweep(model, {
        vector,
        ...(examples ? { examples } : {}),
        strengths: o.strengths ?? [0.1, 0.2, 0.4, 0.8],
        ...(o.unit ? { unit: o.unit } : {}),
        judge,
        prompts,
        neutral,
        ...(o.tokens ? { maxNewTokens: o.tokens } : {}),
        seeds: Array.from({ length: o.seeds ?? 1 }, (_, i) => i),
        ...(o.temperature === undefined ? {} : { temperature: o.temperature }),
        ...(o.keepNorm ? { keepNorm: true } : {}),
        ...(o.folder ? { folder: o.folder } : {}),
        signal: context.io.signal,
        onProgress: context.onProgress,
      })
      return outcome(context, model.origin.id, sweep, o.out)
    })
  },
})

async function outcome(context: CommandContext, model: string, sweep: SteerSweep, out: string | undefined) {
  const { vector, ...rest } = sweep
  const json = { model, ...rest, vector: vector.record }
  if (out) await writeFileWhole(out, `${JSON.stringify(json, null, 1)}\n`)
  for (const note of sweep.notes) context.note(note)
  const best = sweep.recommendation.cell
  const mark = (c: SweepCell) => (c === best ? 'take' : sweep.frontier.includes(c) ? 'frontier' : '')
  const number = (v: number | undefined) => (v === undefined ? '' : short(v))
  const rows = [sweep.baseline, ...sweep.cells].map((c) =>
    c.overflow === undefined
      ? [
          c.site ?? 'no steering',
          short(c.strength),
          short(c.effect),
          short(c.kl),
          short(c.perplexity),
          number(c.repetition),
          number(c.incoherence),
          mark(c),
        ]
      : [c.site ?? '', short(c.strength), '', '', '', '', '', 'overflows'],
  )
  const head = ['site', 'strength', 'effect', 'KL', 'perplexity', 'repetition', 'incoherence', '']
  const text = `Effect: ${sweep.judge.name} (${sweep.judge.unit}).\n${table(head, rows)}${sweep.recommendation.reasons.join('\n')}\n`
  return { json, text: out ? `${text}Written to ${out}.\n` : text }
}

/** The one judge that the options name. */
async function judgeOf(o: Options): Promise<SteeringJudge> {
  const named = (['words', 'target', 'probe', 'labelled', 'endpoint'] as const).filter((k) => o[k] !== undefined)
  if (named.length !== 1)
    throw new UsageError(
      `${named.length === 0 ? 'No judge is named' : `${named.length} judges are named (--${named.join(', --')})`}; give one of --words, --target, --probe, --labelled, --endpoint.`,
    )
  if (o.words) return wordJudge(o.words, o.againstWords)
  if (o.target !== undefined) return logOddsJudge(o.target, o.against)
  if (o.probe !== undefined) {
    const [first] = await loadProbes(o.probe)
    if (!first) throw new UsageError(`${o.probe} holds no probe.`)
    return probeJudge(first)
  }
  if (o.labelled !== undefined) return classifierJudge(await trainTextClassifier(await readLabelled(o.labelled)))
  if (o.judgeModel === undefined || o.rubric === undefined)
    throw new UsageError('A language model as judge needs --judge-model with its name and --rubric with what it is to judge.')
  return endpointJudge({ url: o.endpoint as string, model: o.judgeModel, rubric: o.rubric })
}

async function readLabelled(path: string) {
  const lines = (await readTextFile(path)).split(/\r?\n/)
  return lines.flatMap((line, i) => {
    if (line.trim() === '') return []
    let value: { text?: unknown; label?: unknown } | undefined
    try {
      value = JSON.parse(line) as typeof value
    } catch {
      value = undefined
    }
    if (typeof value?.text !== 'string' || (value.label !== 0 && value.label !== 1))
      throw new UsageError(`${path}, line ${i + 1} must be { "text": …, "label": 0 or 1 }, not ${line.slice(0, 60)}.`)
    return [{ text: value.text, label: value.label as 0 | 1 }]
  })
}

async function plainTexts(path: string): Promise<string[]> {
  return (await readTexts(path, fields)).map((t) => {
    if (typeof t !== 'string') throw new UsageError(`${path} holds ${canonicalJson(t)}; a sweep writes and reads texts, not token ids.`)
    return t
  })
}

function numbers(text: string): number[] {
  const values = text.split(',').map((t) => (t.trim() === '' ? Number.NaN : Number(t)))
  if (values.some((v) => !Number.isFinite(v))) throw new InvalidArgumentError('It must be numbers, separated by commas.')
  return values
}

function words(text: string): string[] {
  return text.split(',').map((w) => w.trim())
}
