/** @file Teacher and student: a direction from a model's answer without a hint to the answer that it gives with one, both read after the prompt without (MemCoach, arXiv:2602.21877). */

import { RuntimeFailure, throwIfCancelled, UsageError } from '../base/errors.ts'
import { sha256 } from '../base/hash.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { NDArray } from '../base/types.ts'
import { batchFeeds, editedModel } from '../explore/patch-graph.ts'
import { logProbabilityOf } from '../nn/index.ts'
import { checkInput } from '../run/batch.ts'
import type { Model, ModelInput } from '../run/index.ts'
import { stackedImages } from '../run/inputs.ts'
import { versions } from '../run/versions.ts'
import { sequenceOf } from '../sites/address.ts'
import { input, matmul, mul, neg, reshape, sqrt, squeeze, sum, type Tensor, unsqueeze } from '../tensor/index.ts'
import { canonicalJson, recordEdits } from './record.ts'
import { differences, meanRow, type Rows } from './rows.ts'
import { noDirection, SteeringVector, widthOf } from './vector.ts'

/** Token ids of one row, with the images [channel, row, column] that take the places of its image tokens. */
export interface Turn {
  readonly ids: readonly number[]
  readonly images?: readonly NDArray<Float32Array>[]
}

/** A prompt, and the answer after it whose tokens are read. */
export interface AnsweredTurn extends Turn {
  readonly answer: readonly number[]
}

/** What one scene gives: the student's prompt, and both answers as tokens. */
export interface TeacherStudentPair {
  readonly prompt: Turn
  /** Written with the hint. */
  readonly teacher: readonly number[]
  /** Written without. */
  readonly student: readonly number[]
}

/** Which tokens a mean is over: those of the answer, or of the whole sequence as in the paper. */
export type AnswerPool = 'answer' | 'sequence'

/** Where and how answers are read. */
export interface PooledOptions extends WorkOptions {
  /** Sites, aliases or patterns. */
  readonly site: string | readonly string[]
  /** Default `answer`: a mean over the whole sequence also holds the prompt, as much as the answers differ in length. */
  readonly pool?: AnswerPool
  /** Tokens that close an answer; part of the sequence, not of the answer. */
  readonly closing?: readonly number[]
  /** Most rows in one pass (default 32). */
  readonly batchSize?: number
}

/** Pooled activations of answers. */
export interface PooledAnswers {
  /** [rows, width] by canonical site. */
  readonly rows: ReadonlyMap<string, Rows>
  /** Mean length of an activation over all positions of the sequences, by canonical site. */
  readonly norms: ReadonlyMap<string, number>
}

/** Rows of tokens, and of images where there are some, as the input of a model. */
export function turnsInput(turns: readonly Turn[]): ModelInput {
  const images = turns.flatMap((t) => t.images ?? [])
  const rows = turns.map((t) => t.ids)
  if (images.length === 0) return { rows }
  const width = Math.max(...rows.map((r) => r.length))
  const matrix = (value: (row: readonly number[], c: number) => number): NDArray => ({
    dtype: 'int64',
    shape: [rows.length, width],
    data: BigInt64Array.from({ length: rows.length * width }, (_, i) =>
      BigInt(value(rows[Math.floor(i / width)] as readonly number[], i % width)),
    ),
  })
  return {
    input_ids: matrix((r, c) => r[c] ?? 0),
    attention_mask: matrix((r, c) => (c < r.length ? 1 : 0)),
    pixel_values: stackedImages(images),
  }
}

const inputs = { pooled: 'pooled_weights', whole: 'sequence_weights', targets: 'answer_targets' } as const
const normOutput = (site: string) => `norm:${site}`

/** Rows [from, to) of all, each with its answer and what closes it. */
function* passes(turns: readonly AnsweredTurn[], closing: readonly number[], size: number) {
  for (let from = 0; from < turns.length; from += size) {
    const part = turns.slice(from, from + size)
    yield {
      from,
      part,
      whole: part.map(({ ids, images, answer }) => ({ ids: [...ids, ...answer, ...closing], ...(images ? { images } : {}) })),
    }
  }
}

/** [batch, pos], one number for each token of each row. */
function perToken(rows: readonly (readonly number[])[], value: (row: number, position: number) => number): NDArray<Float32Array> {
  const width = Math.max(...rows.map((r) => r.length))
  const data = new Float32Array(rows.length * width)
  for (const [b, r] of rows.entries()) for (let p = 0; p < r.length; p++) data[b * width + p] = value(b, p)
  return { dtype: 'float32', shape: [rows.length, width], data }
}

/**
 * Means of activations over the tokens of answers, or of whole sequences, padding never among them.
 * @throws UsageError for empty answers, and sites that no vector can be read at.
 */
export async function pooledAnswers(model: Model, turns: readonly AnsweredTurn[], options: PooledOptions): Promise<PooledAnswers> {
  const { pool = 'answer', closing = [], batchSize = 32 } = options
  if (turns.length === 0) throw new UsageError('There is no answer to read; give at least one.')
  const empty = turns.findIndex((t) => t.answer.length === 0 || t.ids.length === 0)
  if (empty >= 0) throw new UsageError(`The turn ${empty} has an empty prompt or answer, so there is nothing to read; leave it out.`)
  const infos = [...new Set((typeof options.site === 'string' ? [options.site] : options.site).flatMap((p) => model.resolve(p)))]
  for (const { site, row } of infos) {
    const reason = noDirection(row.axes)
    if (reason) throw new UsageError(`No answer can be read at '${site}': ${reason}.`)
  }
  const foreign = infos.find((i) => sequenceOf(i) !== model.architecture.sequences[0].name)
  if (foreign)
    throw new UsageError(`The positions of '${foreign.site}' are not those of the text, in which the answer stands; read another site.`)
  const sites = infos.map((i) => i.site)
  const widths = infos.map((i) => widthOf(model, i))
  const edited = editedModel(model)
  const program = await edited.core.compiled(JSON.stringify(['pooled answers', edited.structure, sites]), () => {
    const { taps } = edited.graph({ taps: sites, lastOnly: false })
    const weights = (name: string) => unsqueeze(input(name, 'float32', ['batch', 'pos']), 1)
    const outputs: Record<string, Tensor> = {}
    for (const [i, site] of sites.entries()) {
      const x = reshape(taps.get(site) as Tensor, ['batch', 'pos', widths[i] as number])
      outputs[site] = squeeze(matmul(weights(inputs.pooled), x), 1)
      outputs[normOutput(site)] = matmul(weights(inputs.whole), sqrt(sum(mul(x, x), [2], true)))
    }
    return outputs
  })
  const rows = new Map(sites.map((s, i) => [s, rowsOf(turns.length, widths[i] as number)]))
  const norms = new Map(sites.map((s) => [s, 0]))
  for (const { from, part, whole } of passes(turns, closing, batchSize)) {
    throwIfCancelled(options.signal)
    const batch = model.tokens(turnsInput(whole))
    checkInput(batch, model.architecture, model.contextLength)
    const pooled = perToken(batch.rows, (b, p) => {
      const { ids, answer } = part[b] as AnsweredTurn
      if (pool === 'sequence') return 1 / (ids.length + answer.length + closing.length)
      return p >= ids.length && p < ids.length + answer.length ? 1 / answer.length : 0
    })
    const all = perToken(batch.rows, (b) => 1 / (batch.rows[b] as readonly number[]).length)
    const out = await program.run(
      { ...batchFeeds(edited, batch), [inputs.pooled]: pooled, [inputs.whole]: all },
      { signal: options.signal },
    )
    for (const site of sites) {
      const values = (out[site] as NDArray).data as Float32Array
      if (values.some((v) => !Number.isFinite(v)))
        throw new RuntimeFailure(`The model gave numbers that are not finite at '${site}'; look at its edits and its weights.`)
      const { width, data } = rows.get(site) as Rows
      data.set(values, from * width)
      for (const v of (out[normOutput(site)] as NDArray).data as Float32Array)
        norms.set(site, (norms.get(site) as number) + v / turns.length)
    }
    options.onProgress?.({ task: 'reading answers', done: from + part.length, total: turns.length, unit: 'answers' })
  }
  return { rows, norms }
}

const rowsOf = (count: number, width: number): Rows => ({ count, width, data: new Float64Array(count * width) })

/** Options of {@link teacherStudent}. */
export interface TeacherStudentOptions extends PooledOptions {
  readonly pairs: readonly TeacherStudentPair[]
}

/** A direction from the student's answers to the teacher's, with what tells whether to trust it. */
export interface TeacherStudentContrast {
  readonly vector: SteeringVector
  /** Contrast of each pair, [pairs, width] by canonical site; the vector is their mean. */
  readonly contrasts: ReadonlyMap<string, Rows>
  /** Mean length of an activation over the student's sequences, by canonical site: what strengths are compared with. */
  readonly norms: ReadonlyMap<string, number>
  /** Mean number of tokens in an answer. */
  readonly lengths: { readonly teacher: number; readonly student: number }
  /** Sentences on what may be wrong with the vector. */
  readonly warnings: readonly string[]
}

/** Largest difference of mean answer lengths, as a share of the student's, that goes without a warning. */
const lengthTolerance = 0.1

/**
 * r = (1/N) Σᵢ (h⁺ᵢ − h⁻ᵢ), where both answers of a pair stand after the same prompt, the student's (arXiv:2602.21877, "Contrast" and
 * "Extraction"). With as many answers on both sides it is the difference of their means. Tokens before the answers are equal on both
 * sides, so that pooling over the sequence leaves (1/T⁺ − 1/T⁻) of their sum in r; the answers' lengths are compared, and a warning says so.
 */
export async function teacherStudent(model: Model, options: TeacherStudentOptions): Promise<TeacherStudentContrast> {
  const { pairs, pool = 'answer' } = options
  const side = (of: 'teacher' | 'student') => pairs.map((p) => ({ ...p.prompt, answer: p[of] }))
  const teacher = await pooledAnswers(model, side('teacher'), options)
  const student = await pooledAnswers(model, side('student'), options)
  const contrasts = new Map([...teacher.rows].map(([site, rows]) => [site, differences(rows, student.rows.get(site) as Rows)] as const))
  const length = (of: 'teacher' | 'student') => pairs.reduce((n, p) => n + p[of].length, 0) / pairs.length
  const lengths = { teacher: length('teacher'), student: length('student') }
  const apart = lengths.teacher / lengths.student - 1
  const lengthWarning = `The teacher's answers have ${lengths.teacher.toFixed(1)} tokens on average and the student's ${lengths.student.toFixed(1)} (${apart > 0 ? '+' : '−'}${Math.abs(100 * apart).toFixed(0)} %)`
  const warnings =
    Math.abs(apart) <= lengthTolerance
      ? []
      : [
          pool === 'sequence'
            ? `${lengthWarning}, so the vector holds that share of the prompt's mean state; pool over the answer, or bring the lengths together.`
            : `${lengthWarning}, so the vector may also lead to longer or shorter answers; compare results at a fixed length.`,
        ]
  const edits = await recordEdits(model.edits)
  const vector = new SteeringVector(
    [...contrasts].map(([site, rows]) => [site, meanRow(rows)] as const),
    {
      method: 'teacher-student',
      options: { pool },
      model: {
        id: model.origin.id,
        hash: await model.origin.hash(),
        family: model.architecture.family,
        layers: (model.architecture.writer ?? model.architecture.stacks[0]).layers,
      },
      sites: [...contrasts.keys()],
      prompts: { hash: await sha256(canonicalJson(pairs)), positive: pairs.length, negative: pairs.length },
      position: 'mean',
      ...(edits ? { edits } : {}),
      precision: model.precision,
      versions: await versions(),
    },
  )
  return { vector, contrasts, norms: student.norms, lengths, warnings }
}

/**
 * Negative log-probability of every token of each answer after its prompt, in nats: [answer tokens] for each row. The model's edits are
 * in force. The exponential of their mean is the paper's perplexity of the teacher's answers.
 */
export async function answerLosses(
  model: Model,
  turns: readonly AnsweredTurn[],
  options: WorkOptions & Pick<PooledOptions, 'closing' | 'batchSize'> = {},
): Promise<Float32Array[]> {
  const { closing = [], batchSize = 32 } = options
  const edited = editedModel(model)
  const program = await edited.core.compiled(JSON.stringify(['answer losses', edited.structure]), () => {
    const { logits } = edited.graph({ taps: [], lastOnly: false })
    const targets = input(inputs.targets, 'int64', ['batch', 'pos'])
    return { loss: neg(logProbabilityOf(logits, targets)) }
  })
  const out: Float32Array[] = []
  for (const { part, whole } of passes(turns, closing, batchSize)) {
    throwIfCancelled(options.signal)
    const batch = model.tokens(turnsInput(whole))
    checkInput(batch, model.architecture, model.contextLength)
    const next = perToken(batch.rows, (b, p) => batch.rows[b]?.[p + 1] ?? 0)
    const targets: NDArray = { dtype: 'int64', shape: next.shape, data: BigInt64Array.from(next.data, BigInt) }
    const { loss } = await program.run({ ...batchFeeds(edited, batch), [inputs.targets]: targets }, { signal: options.signal })
    const [width, data] = [next.shape[1] as number, (loss as NDArray).data as Float32Array]
    for (const [b, { ids, answer }] of part.entries()) {
      const at = b * width + ids.length - 1
      out.push(data.slice(at, at + answer.length + closing.length))
    }
  }
  return out
}

/** What {@link tuneStrength} is asked for. */
export interface TuneOptions extends WorkOptions {
  /** Factors on the vector, by canonical site; those below zero too, since a direction may work the other way round. */
  readonly strengths: Readonly<Record<string, readonly number[]>>
  /** Judges a steered model on scenes that made no vector; more is better. */
  readonly score: (model: Model) => Promise<number>
}

/** One point of a scan. */
export interface TunedPoint {
  readonly site: string
  readonly strength: number
  readonly score: number
}

/** The site and strength at which a vector does best, one site at a time, with all that was tried. */
export interface Tuned {
  readonly best: TunedPoint
  readonly unsteered: number
  readonly tried: readonly TunedPoint[]
  /** Sentences on what may be wrong. */
  readonly warnings: readonly string[]
}

/** Scans sites and strengths of a vector with a judge. Ties go to what was tried first. */
export async function tuneStrength(model: Model, vector: SteeringVector, options: TuneOptions): Promise<Tuned> {
  const points = Object.entries(options.strengths).flatMap(([site, all]) => all.map((strength) => ({ site, strength })))
  if (points.length === 0) throw new UsageError('There is no strength to try; give at least one for a site of the vector.')
  const unsteered = await options.score(model)
  const tried: TunedPoint[] = []
  for (const { site, strength } of points) {
    throwIfCancelled(options.signal)
    const score = await options.score(model.with(vector.edits({ sites: [site], scale: strength })))
    if (!Number.isFinite(score)) throw new UsageError(`The judge gave ${score} at ${site} × ${strength}; it must give a finite number.`)
    tried.push({ site, strength, score })
    options.onProgress?.({ task: 'tuning the strength', done: tried.length, total: points.length, unit: 'strengths' })
  }
  const best = tried.reduce((a, b) => (b.score > a.score ? b : a))
  const warnings = [
    ...(points.every((p) => p.strength > 0)
      ? ['No strength below zero was tried, so a direction that works the other way round would not be seen.']
      : []),
    ...(best.score <= unsteered ? ['No strength does better than the model without steering.'] : []),
    ...(best.strength < 0 && best.score > unsteered
      ? ['The vector does best with its sign turned: what the student has said already may keep it from saying it again.']
      : []),
  ]
  return { best, unsteered, tried, warnings }
}
