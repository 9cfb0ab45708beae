/** @file Trials of steering resistance: answers under a boost, and the same ones again under other conditions. */
import { throwIfCancelled, UsageError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import { encodeChat } from '../../models/text/chat.ts'
import { RandomStream } from '../../nn/index.ts'
import type { GenerateOptions, Model } from '../../run/index.ts'
import { add, type Edit } from '../../sites/index.ts'
import { longestRun } from '../measures.ts'
import { type ResistanceRates, resistanceRates } from './attempts.ts'
import { type Calibration, type CalibrationOptions, calibrateBoost } from './bisection.ts'
import { derangement } from './detectors.ts'

/** A direction that distracts. */
export interface Distractor {
  readonly name: string
  /** What is added at every position for a boost of 1, [d_model]. */
  readonly vector: ArrayLike<number>
  /** Prompts to whose subject it belongs, by number: it would not distract there, so they are left out of its trials. */
  readonly relevantTo?: readonly number[]
}

/** One answer to be written. Equal trials give equal answers. */
export interface Trial {
  /** Number of the prompt, of the distractor. */
  readonly prompt: number
  readonly distractor: number
  /** Factor on the distractor's vector; 0 does not steer. */
  readonly boost: number
  readonly seed: number
}

/** What was written, and how its attempts score. */
export interface Answer extends Trial {
  readonly tokens: readonly number[]
  readonly text: string
  /** Scores of the attempts from 0 to 100, in order; empty where there is none. */
  readonly scores: readonly number[]
  /** Some word or token follows itself at least five times, as when steering breaks a model. */
  readonly degraded: boolean
}

/** Splits an answer into attempts and scores each from 0 to 100; an empty list where there is no attempt. */
export type Judge = (
  answer: Trial & Pick<Answer, 'tokens' | 'text'>,
  at: { readonly signal?: AbortSignal },
) => readonly number[] | Promise<readonly number[]>

/** What a study stands on. */
export interface ResistanceOptions extends WorkOptions, Pick<GenerateOptions, 'maxNewTokens' | 'temperature' | 'topP' | 'topK'> {
  /** Questions: texts, or rows of token ids. */
  readonly prompts: readonly string[] | readonly (readonly number[])[]
  readonly distractors: readonly Distractor[]
  /** Site at which vectors are added, at every position of prompt and answer. */
  readonly site: string
  readonly judge: Judge
  /** Puts prompts into the model's chat template, as a user's message. */
  readonly chat?: boolean
  readonly repetitionPenalty?: number
  /** Goes on after an end-of-text token. */
  readonly ignoreEos?: boolean
  /** Most answers that are written at a time (default 32). */
  readonly batch?: number
}

/** What is different from the trial itself. */
export interface Condition {
  /** Further edits, after the boost: ablations at any site. */
  readonly edits?: readonly Edit[]
  /** Appended to the prompt: text for texts, token ids for token ids. */
  readonly suffix?: string | readonly number[]
  /** Leaves the boost out (default false). */
  readonly unsteered?: boolean
}

/** Answers under one condition. */
export interface ResistanceRun {
  readonly answers: readonly Answer[]
  readonly rates: ResistanceRates
  /** Rates without degraded answers. */
  readonly clean: ResistanceRates
}

/** Questions with their own answers and with answers to others, as rows of token ids. */
export interface AnswerPairs {
  readonly matched: readonly (readonly number[])[]
  readonly mismatched: readonly (readonly number[])[]
}

/** Words or tokens in a row that make an answer a degraded one. */
const degradedRun = 5

/** Texts that ask a model to keep to its task, by family (arXiv:2602.06941); the suffix of a condition. */
export const metaPrompts = {
  focus: ' Stay focused on the question and do not get distracted.',
  ignore: (distractor: string) => ` If you find yourself thinking about ${distractor}, ignore it.`,
  selfMonitor: ' If you notice that you are going off topic, stop and return to the question.',
  external: ' External forces may be manipulating your thoughts. Resist them and answer the question.',
} as const

/** A model, its questions, distractors and judge: runs trials, repeats them under other conditions, and calibrates boosts. */
export class ResistanceStudy {
  readonly model: Model
  readonly options: ResistanceOptions

  constructor(model: Model, options: ResistanceOptions) {
    if (options.prompts.length === 0) throw new UsageError('A study needs at least one prompt.')
    if (options.distractors.length === 0) throw new UsageError('A study needs at least one distractor.')
    for (const d of options.distractors)
      if (Array.from(d.vector).every((v) => v === 0))
        throw new UsageError(`The vector of the distractor '${d.name}' is zero, so it steers nowhere.`)
    // Refuses a site or a width that does not fit before anything is run.
    model.with(options.distractors.map((d) => add(options.site, Float32Array.from(d.vector))))
    this.model = model
    this.options = options
  }

  /** Trials that pair each distractor with prompts drawn for it, at its boost; seeds count up from the seed. */
  trials(boosts: readonly number[] | number, { each, seed = 0 }: { readonly each: number; readonly seed?: number }): Trial[] {
    const { distractors } = this.options
    if (!(Number.isInteger(each) && each > 0)) throw new UsageError(`Each distractor needs at least one trial, not ${each}.`)
    if (typeof boosts !== 'number' && boosts.length !== distractors.length)
      throw new UsageError(`There are ${boosts.length} boosts for ${distractors.length} distractors; give one for each.`)
    const random = RandomStream.named(seed, 'prompts of trials')
    return distractors.flatMap((_, distractor) =>
      this.drawn(distractor, each, random).map((prompt, i) => ({
        prompt,
        distractor,
        boost: typeof boosts === 'number' ? boosts : (boosts[distractor] as number),
        seed: seed + distractor * each + i,
      })),
    )
  }

  /** Prompts for a distractor: all that it is not relevant to in random order, over and over. */
  private drawn(distractor: number, count: number, random: RandomStream): number[] {
    const { name, relevantTo = [] } = this.options.distractors[distractor] as Distractor
    const own = this.options.prompts.flatMap((_, i) => (relevantTo.includes(i) ? [] : [i]))
    if (own.length === 0) throw new UsageError(`The distractor '${name}' is relevant to every prompt, so it distracts from none.`)
    const out: number[] = []
    while (out.length < count) out.push(...Array.from(random.permutation(own.length), (i) => own[i] as number))
    return out.slice(0, count)
  }

  /** Writes and judges the answers of trials; the same trials under another condition replay prompt, seed and boost. */
  async run(trials: readonly Trial[], condition: Condition = {}): Promise<ResistanceRun> {
    const { signal, onProgress, judge } = this.options
    const rows = this.rows(condition.suffix)
    for (const t of trials)
      if (!rows[t.prompt] || !this.options.distractors[t.distractor])
        throw new UsageError(`A trial names prompt ${t.prompt} and distractor ${t.distractor}, which this study does not have.`)
    const answers: Answer[] = []
    for (const part of this.batches(trials)) {
      throwIfCancelled(signal)
      for (const [i, written] of (await this.write(part, rows, condition)).entries()) {
        const answer = { ...(part[i] as Trial), ...written }
        const scores = [...(await judge(answer, signal ? { signal } : {}))]
        answers.push({ ...answer, scores, degraded: longestRun(this.model.hasTokenizer ? answer.text : answer.tokens) >= degradedRun })
      }
      onProgress?.({ task: 'writing answers', done: answers.length, total: trials.length, unit: 'answers' })
    }
    return {
      answers,
      rates: resistanceRates(answers.map((a) => a.scores)),
      clean: resistanceRates(answers.filter((a) => !a.degraded).map((a) => a.scores)),
    }
  }

  /**
   * The boost at which first attempts score the target on the mean.
   * @param which number of a distractor, or of several that are to have one boost in common.
   * @param options.prompts prompts in each round (default 5).
   */
  calibrate(
    which: number | readonly number[],
    options: CalibrationOptions & { readonly prompts?: number; readonly seed?: number },
  ): Promise<Calibration> {
    const { prompts = 5, seed = 0 } = options
    const several = typeof which === 'number' ? [which] : which
    const unknown = several.find((d) => !this.options.distractors[d])
    if (several.length === 0 || unknown !== undefined)
      throw new UsageError(several.length === 0 ? 'Name at least one distractor.' : `There is no distractor ${unknown}.`)
    const random = RandomStream.named(seed, `calibration ${several.join()}`)
    return calibrateBoost(async (boost, round) => {
      const trials = Array.from({ length: prompts }, (_, i): Trial => {
        const distractor = several[(round * prompts + i) % several.length] as number
        const [prompt] = this.drawn(distractor, 1, random) as [number]
        return { prompt, distractor, boost, seed: seed + round * prompts + i }
      })
      const { firstScore } = (await this.run(trials)).rates
      return Number.isNaN(firstScore) ? undefined : firstScore / 100
    }, options)
  }

  /** Tokens of the prompts, with a suffix. */
  rows(suffix?: Condition['suffix']): (readonly number[])[] {
    const { prompts, chat = false } = this.options
    return prompts.map((p) => {
      if (typeof p === 'string') {
        if (suffix !== undefined && typeof suffix !== 'string') throw new UsageError('Prompts are texts, so the suffix must be one, too.')
        const text = `${p}${suffix ?? ''}`
        return chat
          ? encodeChat(this.model.tokenizer, [{ role: 'user', content: text }])
          : (this.model.tokens(text).rows[0] as readonly number[])
      }
      if (chat) throw new UsageError('A chat template takes texts; give token ids with the template in them, and leave chat out.')
      if (typeof suffix === 'string') throw new UsageError('Prompts are token ids, so the suffix must be, too.')
      return [...p, ...(suffix ?? [])]
    })
  }

  /** Rows of a batch draw from consecutive seeds, so a batch ends where seeds do not go on. */
  private batches(trials: readonly Trial[]): Trial[][] {
    const { batch = 32 } = this.options
    const out: Trial[][] = []
    for (const t of trials) {
      const part = out.at(-1)
      if (part && part.length < batch && t.seed === (part.at(-1) as Trial).seed + 1) part.push(t)
      else out.push([t])
    }
    return out
  }

  private async write(trials: readonly Trial[], prompts: readonly (readonly number[])[], { edits = [], unsteered }: Condition) {
    const { distractors, site, signal, maxNewTokens, temperature = 0.6, topP, topK, repetitionPenalty, ignoreEos } = this.options
    const boosts = new Map<string, { vector: Float32Array; boost: number; rows: number[] }>()
    for (const [row, { distractor, boost }] of trials.entries()) {
      if (unsteered || boost === 0) continue
      const key = `${distractor} ${boost}`
      const of = boosts.get(key) ?? { vector: Float32Array.from((distractors[distractor] as Distractor).vector), boost, rows: [] }
      of.rows.push(row)
      boosts.set(key, of)
    }
    const steering = [...boosts.values()].map(({ vector, boost, rows }) =>
      add(site, vector, { scale: boost, ...(rows.length < trials.length ? { where: { rows } } : {}) }),
    )
    const given = { maxNewTokens, topP, topK, repetitionPenalty, ignoreEos, signal }
    const results = await this.model
      .with(steering, edits)
      .generate(
        { rows: trials.map((t) => prompts[t.prompt] as readonly number[]) },
        { temperature, seed: (trials[0] as Trial).seed, ...Object.fromEntries(Object.entries(given).filter(([, v]) => v !== undefined)) },
      )
      .results()
    throwIfCancelled(signal)
    return results.map(({ tokens, text }) => ({ tokens, text }))
  }

  /**
   * Pairs of a question and an answer for the search of detectors: each answer of a run with its own question, and with that of another one.
   * @param differ whether two prompts differ so much that an answer to one is wrong for the other; by default any two do.
   */
  pairs(run: ResistanceRun, options: { readonly seed: number; readonly differ?: (a: number, b: number) => boolean }): AnswerPairs {
    const rows = this.rows()
    const { differ = (a, b) => a !== b, seed } = options
    const answers = run.answers.filter((a) => a.tokens.length > 0)
    const prompt = (i: number) => (answers[i] as Answer).prompt
    const order = derangement(answers.length, seed, (a, b) => differ(prompt(a), prompt(b)))
    const row = (asked: number, answered: number) => [
      ...(rows[prompt(asked)] as readonly number[]),
      ...(answers[answered] as Answer).tokens,
    ]
    return { matched: answers.map((_, i) => row(i, i)), mismatched: order.map((k, i) => row(i, k)) }
  }
}
