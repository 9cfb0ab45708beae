/** @file The closed loop of the photo world: advice is written, carried out, and the photo is judged again. */
import type { Model } from '../run/index.ts'
import { type AnsweredTurn, type TeacherStudentPair, type Turn, turnsInput } from '../steer/index.ts'
import type { Study } from './study.ts'
import { edited, endToken, isAction, memorability, type Photo } from './toys/photos.ts'

/** Most tokens of a list with its end. */
const longestList = 9

/** What was written for one photo. */
export interface Advice {
  /** The actions before the end, with whatever else was written among them. */
  readonly list: readonly number[]
  /** Nothing but actions, and an end. */
  readonly valid: boolean
}

/** Lets a model write after prompts, at temperature 1; equal seeds draw equal random numbers for every model. */
export async function advise(model: Model, prompts: readonly Turn[], study: Study): Promise<Advice[]> {
  const out: Advice[] = []
  for (let from = 0; from < prompts.length; from += 100) {
    const part = prompts.slice(from, from + 100)
    const written = await model
      .generate(turnsInput(part), {
        maxNewTokens: longestList,
        temperature: 1,
        seed: 1000 * study.seed + from,
        ...(study.signal ? { signal: study.signal } : {}),
      })
      .results()
    for (const { tokens } of written) {
      const end = tokens.indexOf(endToken)
      const list = end < 0 ? tokens : tokens.slice(0, end)
      out.push({ list, valid: end >= 0 && list.every(isAction) })
    }
  }
  return out
}

/** How photos fare when advice is carried out. */
export interface Outcome {
  /** Share of photos that are more memorable than before. */
  readonly improved: number
  /** Share that are at least as memorable: an empty edit counts as a success. */
  readonly notWorse: number
  /** Mean gain in memorability relative to what it was. */
  readonly gain: number
  readonly validity: number
  /** Mean number of actions. */
  readonly length: number
  /** Both measures when only the first three actions are carried out. */
  readonly improved3: number
  readonly gain3: number
}

/** Names of the measures, in the order of the tables. */
export const measures: Readonly<Record<keyof Outcome, string>> = {
  improved: 'IR (strict)',
  notWorse: 'IR (≥)',
  gain: 'RM',
  validity: 'validity',
  length: 'actions',
  improved3: 'IR of 3 actions',
  gain3: 'RM of 3 actions',
}

/** Judges advice on photos by M. */
export function outcomeOf(photos: readonly Photo[], advice: readonly Advice[]): Outcome {
  const share = (of: (photo: Photo, a: Advice) => number) => photos.reduce((s, p, i) => s + of(p, advice[i] as Advice), 0) / photos.length
  const gain = (p: Photo, list: readonly number[]) => memorability(edited(p, list)) / memorability(p) - 1
  const up = (x: number) => (x > 1e-12 ? 1 : 0)
  return {
    improved: share((p, a) => up(gain(p, a.list))),
    notWorse: share((p, a) => 1 - up(-gain(p, a.list))),
    gain: share((p, a) => gain(p, a.list)),
    validity: share((_, a) => (a.valid ? 1 : 0)),
    length: share((_, a) => a.list.length),
    improved3: share((p, a) => up(gain(p, a.list.slice(0, 3)))),
    gain3: share((p, a) => gain(p, a.list.slice(0, 3))),
  }
}

/** Pairs of answers to the same prompts, without those of which one is empty or no list. */
export function answeredPairs(prompts: readonly Turn[], teacher: readonly Advice[], student: readonly Advice[]): TeacherStudentPair[] {
  return prompts.flatMap((prompt, i) => {
    const [t, s] = [teacher[i] as Advice, student[i] as Advice]
    return t.valid && s.valid && t.list.length > 0 && s.list.length > 0 ? [{ prompt, teacher: t.list, student: s.list }] : []
  })
}

/** The teacher's answers after the student's prompts. */
export const teacherTurns = (pairs: readonly TeacherStudentPair[]): AnsweredTurn[] => pairs.map((p) => ({ ...p.prompt, answer: p.teacher }))
