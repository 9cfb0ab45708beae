/** @file Entropic activation steering: the direction along which an agent's states covary with how undecided it is (Rahn, D'Oro, Bellemare 2024, arXiv:2406.00244). */

import { UsageError } from '../base/errors.ts'
import { cosineOf, meanOf } from '../base/numbers.ts'

/** One step of one run: the state before the choice, and how undecided the choice was. */
export interface EntropicStep {
  /** Activation at the last token of the prompt, [width]. */
  readonly state: Float32Array
  /** Entropy of the distribution over actions, nats. */
  readonly entropy: number
}

/** Steps of one run of the agent, in order; runs may differ in length. */
export type EntropicRun = readonly EntropicStep[]

/** Settings of {@link entropicDirection}. */
export interface EntropicOptions {
  /**
   * What is taken from each state: the mean of its own run (the paper's), the mean of all, or nothing. Only the first leaves what the run's
   * history adds to all its states out of the direction.
   */
  readonly centre?: 'run' | 'all' | 'none'
  /** Takes the mean over runs at each step from states and entropies, since both drift with the length of the history. */
  readonly removeTime?: boolean
}

/** The direction, and how far to trust it. */
export interface EntropicDirection {
  /** u = Σ h (z − z̄) / Σ h, [width]; not normalised: its length grows with the spread of the entropies. */
  readonly direction: Float64Array
  readonly meanEntropy: number
  /** Cosine with the direction in which states drift as entropy changes with the step alone; near one where the direction may only mean "late". */
  readonly cosineWithTime: number
}

/** Below this mean entropy, in nats, the agent is decided everywhere and there is nothing to weigh by. */
const leastEntropy = 0.01

/** Fits the direction to runs of an agent. @throws UsageError where the logs are too few or too decided. */
export function entropicDirection(runs: readonly EntropicRun[], options: EntropicOptions = {}): EntropicDirection {
  const { centre = 'run', removeTime = false } = options
  const width = runs[0]?.[0]?.state.length
  if (width === undefined) throw new UsageError('There are no steps to learn from; collect runs of the agent first.')
  if (centre === 'run' && runs.every((r) => r.length < 2))
    throw new UsageError('Every run has one step, so nothing is left after its mean is taken; collect longer runs.')
  const steps = runs.flat()
  const meanEntropy = meanOf(steps.map((s) => s.entropy))
  if (!(meanEntropy >= leastEntropy))
    throw new UsageError(
      `The mean entropy of the actions is ${meanEntropy.toPrecision(2)} nats, below ${leastEntropy}: the agent is decided everywhere, so there is nothing to weigh by; collect runs where it hesitates.`,
    )
  const centred = centredStates(runs, centre, width)
  const curve = stepMeans(runs)
  const used = removeTime
    ? withoutTime(runs, centred, curve, width)
    : { states: centred, entropies: runs.map((r) => r.map((s) => s.entropy)) }
  const direction = weighted(used.states, used.entropies, meanEntropy * steps.length, width)
  const byTime = weighted(
    centredStates(runs, 'run', width),
    runs.map((r) => r.map((_, t) => curve[t] as number)),
    1,
    width,
  )
  return { direction, meanEntropy, cosineWithTime: cosineOf(direction, byTime) }
}

function centredStates(runs: readonly EntropicRun[], centre: 'run' | 'all' | 'none', width: number): Float64Array[][] {
  const all = centre === 'all' ? meanState(runs.flat(), width) : new Float64Array(width)
  return runs.map((run) => {
    const by = centre === 'run' ? meanState(run, width) : all
    return run.map(({ state }) => Float64Array.from(state, (x, i) => x - (by[i] as number)))
  })
}

function meanState(steps: EntropicRun, width: number): Float64Array {
  const out = new Float64Array(width)
  for (const { state } of steps) for (let i = 0; i < width; i++) out[i] = (out[i] as number) + (state[i] as number) / steps.length
  return out
}

/** Mean entropy at each step, over the runs that reach it. */
function stepMeans(runs: readonly EntropicRun[]): number[] {
  const longest = Math.max(...runs.map((r) => r.length))
  return Array.from({ length: longest }, (_, t) => meanOf(runs.filter((r) => r.length > t).map((r) => (r[t] as EntropicStep).entropy)))
}

function withoutTime(runs: readonly EntropicRun[], states: readonly Float64Array[][], curve: readonly number[], width: number) {
  const means = curve.map((_, t) => {
    const there = states.filter((r) => r.length > t).map((r) => r[t] as Float64Array)
    const out = new Float64Array(width)
    for (const s of there) for (let i = 0; i < width; i++) out[i] = (out[i] as number) + (s[i] as number) / there.length
    return out
  })
  return {
    states: states.map((r) => r.map((s, t) => s.map((x, i) => x - ((means[t] as Float64Array)[i] as number)))),
    entropies: runs.map((r) => r.map((s, t) => s.entropy - (curve[t] as number))),
  }
}

function weighted(states: readonly Float64Array[][], weights: readonly (readonly number[])[], by: number, width: number): Float64Array {
  const out = new Float64Array(width)
  for (const [k, run] of states.entries())
    for (const [t, z] of run.entries()) {
      const h = (weights[k]?.[t] as number) / by
      for (let i = 0; i < width; i++) out[i] = (out[i] as number) + h * (z[i] as number)
    }
  return out
}

/** Probabilities of some tokens among themselves, their entropy in nats, and the mass that the model gives to all of them together. */
export function choiceOf(logits: ArrayLike<number>, tokens: readonly number[]): { probabilities: number[]; entropy: number; mass: number } {
  let top = Number.NEGATIVE_INFINITY
  for (let i = 0; i < logits.length; i++) top = Math.max(top, logits[i] as number)
  let all = 0
  for (let i = 0; i < logits.length; i++) all += Math.exp((logits[i] as number) - top)
  const own = tokens.map((t) => Math.exp((logits[t] as number) - top))
  const sum = own.reduce((a, b) => a + b, 0)
  const probabilities = own.map((v) => v / sum)
  return { probabilities, entropy: -probabilities.reduce((s, p) => s + (p > 0 ? p * Math.log(p) : 0), 0), mass: sum / all }
}

/** Entropy of sampled choices in nats; unparsed ones (undefined) do not count. */
export function sampledEntropy(choices: readonly (number | undefined)[]): number {
  const valid = choices.filter((c) => c !== undefined)
  const counts = new Map<number, number>()
  for (const c of valid) counts.set(c, (counts.get(c) ?? 0) + 1)
  return [...counts.values()].reduce((s, n) => s - (n / valid.length) * Math.log(n / valid.length), 0)
}

/** The entries of a direction in another order: a control of equal length and equal entries that means nothing. */
export function shuffledEntries(direction: Float64Array, permutation: ArrayLike<number>): Float64Array {
  return Float64Array.from(direction, (_, i) => direction[permutation[i] as number] as number)
}
