/** @file The verdict: from gates and numbers, by one rule for all papers. */
import { meanOf } from '../base/numbers.ts'
import type { Gate, Metrics } from './paper.ts'

/** The verdicts of the contract. */
export type Verdict = 'reproduced' | 'refuted' | 'inconclusive'

/** How a gate came out. */
export interface GateResult {
  readonly name: string
  readonly role: Gate['role']
  readonly text: string
  /** In words: `≥ 0.35`. */
  readonly bound: string
  /** Value of each repeat, and their mean. */
  readonly values: readonly number[]
  readonly mean: number
  /** Ends of the 95 % interval of the mean over repeats (Student's t); equal to the mean with one repeat. */
  readonly interval: readonly [number, number]
  readonly passed: boolean
  /** Whether every repeat alone passes, or every repeat alone fails. */
  readonly firm: boolean
}

/** Two-sided 97.5 % points of Student's t by degrees of freedom; beyond, those of the normal distribution. */
const student = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]

/** Mean and 95 % interval of the mean. */
export function meanInterval(values: readonly number[]): { mean: number; interval: [number, number] } {
  const n = values.length
  const mean = meanOf(values)
  if (n < 2) return { mean, interval: [mean, mean] }
  const variance = values.reduce((s, v) => s + (v - mean) ** 2, 0) / (n - 1)
  const half = (student[n - 2] ?? 1.96) * Math.sqrt(variance / n)
  return { mean, interval: [mean - half, mean + half] }
}

function holds(gate: Gate, value: number): boolean {
  return Number.isFinite(value) && value >= (gate.atLeast ?? -Infinity) && value <= (gate.atMost ?? Infinity)
}

/** The bound of a gate in words: `≥ 0.35`. */
export function boundOf({ atLeast, atMost }: Gate): string {
  const bounds = [atLeast === undefined ? '' : `≥ ${atLeast}`, atMost === undefined ? '' : `≤ ${atMost}`]
  return bounds.filter((b) => b).join(' and ')
}

/** The gates over all repeats: a gate passes when the mean of the repeats does. */
export function gateResults(gates: readonly Gate[], repeats: readonly Metrics[]): GateResult[] {
  return gates.map((gate) => {
    const values = repeats.map((m) => gate.of(m))
    const { mean, interval } = meanInterval(values)
    const passed = holds(gate, mean)
    return {
      name: gate.name,
      role: gate.role,
      text: gate.text,
      bound: boundOf(gate),
      values,
      mean,
      interval,
      passed,
      firm: values.every((v) => holds(gate, v) === passed),
    }
  })
}

/**
 * The rule. A setting that did not come about leaves the question open. Else a control that behaves as the method does, or a claim that
 * fails in every repeat, refutes; a claim that fails on the mean but not in every repeat is open; and when all hold it is reproduced.
 */
export function verdictOf(gates: readonly GateResult[], quick: boolean): { verdict: Verdict; reason: string } {
  const failed = (role: Gate['role']) => gates.filter((g) => g.role === role && !g.passed)
  const tell = (list: readonly GateResult[]) =>
    list.map((g) => `${g.text.replace(/\.$/, '')} (${round(g.mean)}, wanted ${g.bound})`).join('; ')
  const decided = decide(failed('setting'), failed('control'), failed('claim'), gates.length, tell)
  if (!quick) return decided
  return {
    verdict: 'inconclusive',
    reason: `A quick run is a smoke test, too small to judge; on its numbers: ${decided.verdict}. ${decided.reason}`,
  }
}

function decide(
  settings: readonly GateResult[],
  controls: readonly GateResult[],
  claims: readonly GateResult[],
  count: number,
  tell: (list: readonly GateResult[]) => string,
): { verdict: Verdict; reason: string } {
  if (settings.length > 0)
    return { verdict: 'inconclusive', reason: `The setting did not come about, so the question stays open: ${tell(settings)}.` }
  const firm = [...controls, ...claims].filter((g) => g.firm)
  if (firm.length > 0)
    return {
      verdict: 'refuted',
      reason: `${firm.some((g) => g.role === 'control') ? 'A control does not behave as it must' : 'The claim fails in every repeat'}: ${tell(firm)}.`,
    }
  const open = [...controls, ...claims]
  if (open.length > 0) return { verdict: 'inconclusive', reason: `Repeats disagree: ${tell(open)}.` }
  return { verdict: 'reproduced', reason: `All ${count} gates hold on the mean of the repeats.` }
}

/** Four significant digits, for sentences. */
export const round = (x: number): string => (Number.isFinite(x) ? String(Number(x.toPrecision(4))) : String(x))
