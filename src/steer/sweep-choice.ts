/** @file What follows from a sweep: which cells no other one beats, and which one to take, with reasons. */
import { meanOf } from '../base/numbers.ts'

/** How a steered model did at one site and strength. */
export interface SweepCell {
  /** Undefined for the model without steering. */
  readonly site?: string
  readonly strength: number
  /** Score of the judge, a mean over prompts and seeds. */
  readonly effect: number
  /** Scores of the judge, in the order of the prompts; with several seeds, all prompts of a seed after one another. */
  readonly scores: readonly number[]
  /** Mean divergence of the next token from the unsteered model on the neutral texts, nats. */
  readonly kl: number
  /** Perplexity of the neutral texts. */
  readonly perplexity: number
  /** Mean share of three-word sequences of a written text that it has said before; absent where nothing was written. */
  readonly repetition?: number
  /** Share of different two-word sequences among those of all written texts. */
  readonly distinct?: number
  /** Perplexity of the written texts under the unsteered model: low where they read like its own. */
  readonly incoherence?: number
  /** What was written, for reading. */
  readonly texts?: readonly string[]
  /** Why there are no numbers: what overflowed. */
  readonly overflow?: string
}

/** What a recommendation may cost. */
export interface SweepLimits {
  /** Largest divergence on neutral texts, nats (default 0.5). */
  readonly kl?: number
  /** Largest perplexity of neutral texts, as a multiple of the unsteered one (default 1.5). */
  readonly perplexity?: number
  /** Most repetition beyond that of the unsteered model (default 0.1). */
  readonly repetition?: number
  /** Largest perplexity of the written texts under the unsteered model, as a multiple of that of its own texts (default 3). */
  readonly incoherence?: number
}

/** A choice and its reasons, in sentences. */
export interface SweepChoice {
  /** Absent where no cell is worth taking. */
  readonly cell?: SweepCell
  readonly reasons: readonly string[]
}

/** Cells that no other one beats: none has at least the effect at a smaller divergence. From the smallest divergence on; the unsteered model is the first. */
export function frontier(cells: readonly SweepCell[]): SweepCell[] {
  const sound = cells.filter((c) => c.overflow === undefined).sort((a, b) => a.kl - b.kl || b.effect - a.effect)
  let best = Number.NEGATIVE_INFINITY
  return sound.filter((c) => {
    if (c.effect <= best) return false
    best = c.effect
    return true
  })
}

const digits = (x: number) => String(Number(x.toPrecision(3)))
const nameOf = (c: SweepCell) => `strength ${digits(c.strength)} at ${c.site}`

/** What a cell breaks, as sentences without their subject. */
function costs(c: SweepCell, baseline: SweepCell, limits: SweepLimits): string[] {
  const { kl = 0.5, perplexity = 1.5, repetition = 0.1, incoherence = 3 } = limits
  const out: string[] = []
  if (c.overflow !== undefined) return [`overflows`]
  if (c.kl > kl) out.push(`moves neutral text by ${digits(c.kl)} nats a token (limit ${digits(kl)})`)
  if (c.perplexity > perplexity * baseline.perplexity)
    out.push(`raises the perplexity of neutral text from ${digits(baseline.perplexity)} to ${digits(c.perplexity)}`)
  if (c.repetition !== undefined && c.repetition > (baseline.repetition ?? 0) + repetition)
    out.push(`repeats itself (${digits(c.repetition)} of what it writes, ${digits(baseline.repetition ?? 0)} without steering)`)
  if (c.incoherence !== undefined && baseline.incoherence !== undefined && c.incoherence > incoherence * baseline.incoherence)
    out.push(
      `writes what the unsteered model finds unlikely (perplexity ${digits(c.incoherence)}, ${digits(baseline.incoherence)} for its own text)`,
    )
  return out
}

/** Mean difference of paired scores and its standard error; the error is infinite with fewer than two. */
export function pairedDifference(a: readonly number[], b: readonly number[]): { mean: number; error: number } {
  const d = a.map((x, i) => x - (b[i] as number))
  const mean = meanOf(d)
  const variance = d.reduce((s, x) => s + (x - mean) ** 2, 0) / (d.length - 1)
  return { mean, error: d.length < 2 ? Number.POSITIVE_INFINITY : Math.sqrt(variance / d.length) }
}

/** The cell with the most effect within the limits, if its effect stands out from that of no steering (twice the standard error of paired scores). */
export function recommend(baseline: SweepCell, cells: readonly SweepCell[], limits: SweepLimits = {}): SweepChoice {
  const usable = cells.filter((c) => costs(c, baseline, limits).length === 0).sort((a, b) => b.effect - a.effect || a.kl - b.kl)
  const strongest = cells.filter((c) => c.overflow === undefined).sort((a, b) => b.effect - a.effect)[0]
  const refused =
    strongest && !usable.includes(strongest)
      ? [
          `The largest effect is ${digits(strongest.effect)} with ${nameOf(strongest)}, but it ${costs(strongest, baseline, limits).join(', and ')}.`,
        ]
      : []
  const best = usable[0]
  if (!best) return { reasons: ['No site and strength stays within the limits; try smaller strengths.', ...refused] }
  const { mean, error } = pairedDifference(best.scores, baseline.scores)
  if (!(mean > 0 && mean >= 2 * error))
    return {
      reasons: [
        `Within the limits the best is ${nameOf(best)}, but its effect differs from that of no steering by ${digits(mean)} ± ${digits(error)} only, which may be chance; use more prompts, or larger strengths.`,
        ...refused,
      ],
    }
  const reasons = [
    `Take ${nameOf(best)}: the judge's score rises from ${digits(baseline.effect)} to ${digits(best.effect)} (difference ${digits(mean)} ± ${digits(error)}), the most of all that stay within the limits.`,
    `It moves neutral text by ${digits(best.kl)} nats a token; its perplexity goes from ${digits(baseline.perplexity)} to ${digits(best.perplexity)}.`,
    ...refused,
  ]
  const gentler = usable.find(
    (c) => c !== best && c.effect - baseline.effect >= 0.9 * (best.effect - baseline.effect) && c.kl <= best.kl / 2,
  )
  if (gentler) reasons.push(`Nine tenths of the effect come at half the divergence with ${nameOf(gentler)}.`)
  return { cell: best, reasons }
}
