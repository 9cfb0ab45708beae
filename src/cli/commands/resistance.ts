/** @file `actlens resistance`: does a model that is steered off topic start again and recover? */

import { UsageError } from '../../base/errors.ts'
import { writeFileWhole } from '../../base/files.ts'
import { loadSae, type Sae } from '../../decompose/index.ts'
import { encodeChat } from '../../models/text/index.ts'
import type { Model } from '../../run/index.ts'
import { type Distractor, irrelevantLatents, loadVector, measureResistance, type Rate, type ResistanceReport } from '../../steer/index.ts'
import { type CommandContext, defineCommand, integer, modelArgument, number, type OptionRow } from '../command.ts'
import { withModel } from '../model.ts'
import { checkOutput } from '../output.ts'
import { short, table } from '../table.ts'
import { readTexts } from '../texts.ts'

interface Options {
  readonly prompts: string
  readonly chat?: boolean
  readonly vectors?: readonly string[]
  readonly sae?: string
  readonly latents?: readonly number[]
  readonly randomLatents?: number
  readonly site?: string
  readonly target?: number
  readonly rounds?: number
  readonly trials?: number
  readonly maxNewTokens?: number
  readonly temperature?: number
  readonly repetitionPenalty?: number
  readonly suffix?: string
  readonly hold?: number
  readonly read?: readonly string[]
  readonly seed?: number
  readonly out?: string
}

const options: readonly OptionRow[] = [
  { flags: '--prompts <file>', doc: 'questions: a text a line, or JSONL', required: true },
  { flags: '--chat', doc: "puts the questions into the model's chat template" },
  { flags: '--vectors <files>', doc: 'files of steering vectors that distract, one direction each', repeat: true, conflicts: ['sae'] },
  { flags: '--sae <source>', doc: 'an autoencoder whose latents distract', conflicts: ['vectors'] },
  { flags: '--latents <numbers>', doc: 'latents to boost', repeat: true, parse: integer(0), conflicts: ['randomLatents'] },
  { flags: '--random-latents <n>', doc: 'boosts this many latents that are silent on all prompts', parse: integer(1) },
  { flags: '--site <site>', doc: 'where to steer (default: where the vectors or the autoencoder belong)' },
  { flags: '--target <score>', doc: 'score of first attempts that boosts are calibrated to, 0 to 100 (default: 30)', parse: number },
  { flags: '--rounds <n>', doc: 'rounds of calibration, five prompts each (default: 10)', parse: integer(1) },
  { flags: '--trials <n>', doc: 'answers for each distractor (default: 5)', parse: integer(1) },
  { flags: '--max-new-tokens <n>', doc: 'most tokens of an answer (default: 128)', parse: integer(1) },
  { flags: '--temperature <x>', doc: 'of the draws (default: 0.6)', parse: number },
  { flags: '--repetition-penalty <x>', doc: 'above 1, tokens that are there already become less likely (default: 1.1)', parse: number },
  { flags: '--suffix <text>', doc: 'repeats the trials with this appended to the questions' },
  {
    flags: '--hold <n>',
    doc: 'repeats them with the best off-topic detectors held at their mean, and with random ones',
    parse: integer(1),
  },
  { flags: '--read <sites>', doc: 'where detectors are looked for (default: mlp_act.*, or the latents of the autoencoder)', repeat: true },
  { flags: '--seed <n>', doc: 'seed of everything that is drawn (default: 0)', parse: integer(0, 2 ** 30) },
  { flags: '--out <file>', doc: 'JSON file for all answers with their scores' },
]

export const command = defineCommand<{ model: string }, Options>({
  name: 'resistance',
  summary: 'Steers a model off topic at calibrated boosts and counts how often it starts again and does better.',
  example: 'resistance embedded --prompts questions.txt --vectors pirate.safetensors --site resid_post.3 --trials 20 --out answers.json',
  arguments: [modelArgument],
  options,
  async run(context, args, o) {
    if (o.out !== undefined) await checkOutput(o.out)
    if ((o.vectors === undefined) === (o.sae === undefined)) throw new UsageError('Say what distracts: give --vectors or --sae.')
    if (o.sae === undefined && (o.latents ?? o.randomLatents) !== undefined)
      throw new UsageError('--latents and --random-latents belong to an autoencoder; give --sae.')
    if (o.sae !== undefined && o.latents === undefined && o.randomLatents === undefined)
      throw new UsageError('Say which latents distract: give --latents or --random-latents.')
    if (o.read !== undefined && o.hold === undefined) throw new UsageError('--read says where detectors are looked for; give --hold, too.')
    const prompts = (await readTexts(o.prompts, { fields: ['text', 'prompt', 'question'] })).map((p, i) => {
      if (typeof p === 'string') return p
      throw new UsageError(`Question ${i} of ${o.prompts} is token ids, but answers are compared as texts; give texts.`)
    })
    return withModel(context, args.model, {}, async ({ model }) => {
      const { signal } = context.io
      await using sae = o.sae === undefined ? undefined : await loadSae(o.sae, { signal, onProgress: context.onProgress })
      const { distractors, site } = sae ? await ofLatents(model, sae, prompts, o) : await ofVectors(o)
      const sources = o.read ? o.read.flatMap((p) => model.resolve(p)) : sae ? undefined : model.resolve('mlp_act.*')
      const report = await measureResistance(model, {
        prompts,
        distractors,
        site,
        chat: o.chat === true,
        temperature: o.temperature ?? 0.6,
        repetitionPenalty: o.repetitionPenalty ?? 1.1,
        maxNewTokens: o.maxNewTokens ?? 128,
        target: (o.target ?? 30) / 100,
        each: o.trials ?? 5,
        seed: o.seed ?? 0,
        ...(o.rounds === undefined ? {} : { rounds: o.rounds }),
        ...(o.suffix === undefined ? {} : { suffix: o.suffix }),
        ...(o.hold === undefined
          ? {}
          : {
              hold: {
                count: o.hold,
                sources: sources?.map((s) => ({ site: s.site })) ?? [{ site: sae?.site(model).site as string, sae: sae as Sae }],
              },
            }),
        signal,
        onProgress: context.onProgress,
      })
      const { detectors, ...rest } = report
      const json = {
        model: model.origin.id,
        site,
        ...rest,
        detectors: detectors.map(({ source, ...d }) => ({ site: source.site, kind: source.sae ? 'latent' : 'coordinate', ...d })),
      }
      warnings(context, report)
      if (o.out !== undefined) await writeFileWhole(o.out, `${JSON.stringify(json, null, 1)}\n`)
      const { runs, ...shown } = json
      const rates = Object.fromEntries(
        Object.entries(runs).map(([name, r]) => [name, { ...r.rates, degraded: r.answers.filter((a) => a.degraded).length }]),
      )
      return { json: { ...shown, runs: rates }, text: textOf(report) + (o.out === undefined ? '' : `Answers written to ${o.out}.\n`) }
    })
  },
})

async function ofVectors({ vectors = [], site }: Options): Promise<{ distractors: Distractor[]; site: string }> {
  const distractors: Distractor[] = []
  let at = site
  for (const file of vectors) {
    const v = await loadVector(file)
    if (at === undefined && v.sites.length > 1)
      throw new UsageError(`${file} has directions for ${v.sites.length} sites; name one of them with --site: ${v.sites.join(', ')}.`)
    at ??= v.sites[0] as string
    distractors.push({ name: file, vector: v.at(at) })
  }
  return { distractors, site: at as string }
}

async function ofLatents(
  model: Model,
  sae: Sae,
  prompts: readonly string[],
  o: Options,
): Promise<{ distractors: Distractor[]; site: string }> {
  const rows = prompts.map((p) =>
    o.chat ? encodeChat(model.tokenizer, [{ role: 'user', content: p }]) : (model.tokens(p).rows[0] as readonly number[]),
  )
  const source = { site: sae.site(model).site, sae }
  const latents = o.latents ?? (await irrelevantLatents(model, source, rows, { count: o.randomLatents as number, seed: o.seed ?? 0 }))
  return {
    distractors: latents.map((j) => ({ name: `latent ${j}`, vector: sae.direction(j) })),
    site: sae.outputSite(model, o.site).site,
  }
}

function warnings(context: CommandContext, { separation, distractors }: ResistanceReport): void {
  if (separation !== undefined && separation < 0.8)
    context.warn(
      `The judge tells answers to a question from answers to others with an area of ${short(separation)} only, so its scores mean little.`,
    )
  for (const { name, calibration } of distractors)
    if (calibration.atEnd)
      context.warn(`The boost of ${name} lies at an end of the range, so first attempts do not reach the target within it.`)
}

const percent = ({ value, low, high }: Rate) =>
  Number.isNaN(value) ? '–' : `${(100 * value).toFixed(1)} % (${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)})`

function textOf({ runs, distractors }: ResistanceReport): string {
  const boosts = table(
    ['distractor', 'boost', 'of 90 %, from', 'to'],
    distractors.map(({ name, calibration: c }) => [name, short(c.boost), short(c.interval[0]), short(c.interval[1])]),
  )
  const rates = table(
    ['trials', 'answers', 'first score', 'multi-attempt', 'start again and improve (ESR)'],
    Object.entries(runs).map(([name, { rates: r }]) => [
      name,
      String(r.answers),
      r.firstScore.toFixed(1),
      percent(r.multiAttempt),
      percent(r.resistance),
    ]),
  )
  return `${boosts}\n${rates}`
}
