/** @file A judge by log-odds: how much likelier the steered model finds one continuation than another. */
import { UsageError } from '../../base/errors.ts'
import type { WorkOptions } from '../../base/progress.ts'
import type { Model } from '../../run/model.ts'
import { tokenLosses } from '../measures.ts'
import { canonicalJson } from '../record.ts'
import type { SteeringJudge } from './judge.ts'

/** Logarithm of the probability of a continuation after each prompt, nats; the model's edits are in force. */
export async function continuationLogProbabilities(
  model: Model,
  prompts: readonly string[],
  continuation: string,
  options: WorkOptions = {},
): Promise<number[]> {
  const rows = prompts.map((p) => {
    const whole = model.tokens(p + continuation).rows[0] as readonly number[]
    const alone = model.tokens(p).rows[0] as readonly number[]
    // Where a token reaches over the border, it belongs to the continuation.
    let shared = 0
    while (shared < alone.length && alone[shared] === whole[shared]) shared++
    if (shared >= whole.length) throw new UsageError(`'${continuation}' adds no token to ${JSON.stringify(p)}; give another continuation.`)
    if (shared === 0) throw new UsageError(`The prompt ${JSON.stringify(p)} has no token before '${continuation}'; give a longer one.`)
    return { whole, shared }
  })
  const losses = await tokenLosses(model, { rows: rows.map((r) => r.whole) }, options)
  return losses.map((l, i) => -l.slice((rows[i] as { shared: number }).shared - 1).reduce((a, b) => a + b, 0))
}

/** ln p(target | prompt) − ln p(against | prompt), nats, on the steered model; without `against` the first term alone. */
export function logOddsJudge(target: string, against?: string): SteeringJudge {
  if (target === '' || against === '') throw new UsageError('The continuation of a log-odds judge is empty; give a text.')
  if (target === against) throw new UsageError('Both continuations are the same, so their log-odds are 0; give two.')
  return {
    name: against === undefined ? 'log-probability' : 'log-odds',
    unit: 'nats',
    key: canonicalJson({ target, against: against ?? null }),
    reads: 'model',
    score: async ({ model, prompts, signal, onProgress }) => {
      const work = { ...(signal ? { signal } : {}), ...(onProgress ? { onProgress } : {}) }
      const wanted = await continuationLogProbabilities(model, prompts, target, work)
      if (against === undefined) return wanted
      const other = await continuationLogProbabilities(model, prompts, against, work)
      return wanted.map((w, i) => w - (other[i] as number))
    },
  }
}
