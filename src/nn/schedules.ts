/** @file Learning rates over the steps of training. */
import { UsageError } from '../base/errors.ts'

/** The learning rate of the update after `done` updates. */
export type Schedule = (done: number) => number

function refuse(steps: Readonly<Record<string, number>>): void {
  for (const [name, n] of Object.entries(steps))
    if (!(n >= 0)) throw new UsageError(`A schedule needs ${name} to be zero or more, not ${n}.`)
}

/** The part of a stretch that is behind us: 0 before it, 1 after it. */
const part = (done: number, from: number, length: number) => (length <= 0 ? 1 : Math.min(1, Math.max(0, (done - from) / length)))

/** The same rate throughout. */
export const constantRate =
  (rate: number): Schedule =>
  () =>
    rate

/** From `rate` to `end` in a straight line. */
export function linearRate(rate: number, options: { steps: number; end?: number }): Schedule {
  refuse(options)
  return (done) => rate + ((options.end ?? 0) - rate) * part(done, 0, options.steps)
}

/** From `rate` to `end` along half a cosine (Loshchilov and Hutter 2017). */
export function cosineRate(rate: number, options: { steps: number; end?: number }): Schedule {
  refuse(options)
  const { steps, end = 0 } = options
  return (done) => end + ((rate - end) * (1 + Math.cos(Math.PI * part(done, 0, steps)))) / 2
}

/** Times `factor` after every `every` steps. */
export function steppedRate(rate: number, { every, factor = 0.1 }: { every: number; factor?: number }): Schedule {
  if (!(every >= 1)) throw new UsageError(`A stepwise schedule needs at least one step between changes, not ${every}.`)
  return (done) => rate * factor ** Math.floor(done / every)
}

/** rate/√(done/scale) after a linear rise over `scale` steps (Vaswani et al. 2017, with the peak as the rate). */
export function inverseSquareRootRate(rate: number, { scale }: { scale: number }): Schedule {
  if (!(scale >= 1)) throw new UsageError(`The inverse square root schedule needs a scale of at least one step, not ${scale}.`)
  return (done) => rate * Math.min((done + 1) / scale, Math.sqrt(scale / (done + 1)))
}

/** Warm-up, a level stretch, and a linear decay to `end` over the last `decay` of `steps` (WSD; Hu et al. 2024). */
export function warmupStableDecay(rate: number, options: { steps: number; warmup: number; decay: number; end?: number }): Schedule {
  refuse(options)
  const { steps, warmup, decay, end = 0 } = options
  return withWarmup((done) => rate + (end - rate) * part(done + warmup, steps - decay, decay), warmup)
}

/** A linear rise over `warmup` steps, then another schedule from its beginning. */
export function withWarmup(schedule: Schedule, warmup: number): Schedule {
  refuse({ warmup })
  return (done) => (done < warmup ? (schedule(0) * (done + 1)) / warmup : schedule(done - warmup))
}
