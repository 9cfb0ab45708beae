/** @file Two texts that are compared: what is asked of the server about them, and how they lie side by side. */
import { untrack } from 'svelte'
import type { PairAnswer, PairSide, RequestOf } from '../../../src/server/protocol.ts'
import { activeEdits, inputOf } from '../rooms/look/stories.ts'
import type { PairState } from '../rooms/states.ts'
import { post } from './api.ts'
import { app } from './app.svelte.ts'
import { Live } from './live.svelte.ts'

/** The texts as tokens, and what the model would say next. */
export const pair = new Live<PairAnswer>()

/** Metrics, what they are called, and which tokens they need. */
export const metrics: Readonly<Record<string, { readonly label: string; readonly needs: readonly ('answer' | 'wrong')[] }>> = {
  'logit-difference': { label: 'logit difference', needs: ['answer', 'wrong'] },
  logit: { label: 'logit', needs: ['answer'] },
  probability: { label: 'probability', needs: ['answer'] },
  'log-probability': { label: 'log-probability', needs: ['answer'] },
  kl: { label: 'KL divergence', needs: [] },
  loss: { label: 'loss', needs: [] },
}

/** The part of a request that names the two texts; undefined where one is missing. */
export function pairRequest(): RequestOf<'pair'> | undefined {
  const { model } = app.view
  const { clean, corrupt } = app.view.rooms.pair
  if (clean.trim() === '' || corrupt.trim() === '') return undefined
  return {
    ...(model === '' ? {} : { model }),
    clean: inputOf(clean),
    corrupt: inputOf(corrupt),
    edits: pairEdits(),
  }
}

/** Edits that act on both texts. */
export const pairEdits = () => (app.view.withEdits ? activeEdits($state.snapshot(app.view.edits) as typeof app.view.edits) : [])

/** The part of a request that says what is measured; undefined where a token is missing. */
export function measuredRequest({ metric, answer, wrong, direction }: PairState) {
  const needs = metrics[metric]?.needs ?? []
  const given = { answer, wrong }
  if (needs.some((n) => given[n] === '')) return undefined
  return {
    metric: metric as NonNullable<RequestOf<'patch'>['metric']>,
    direction: direction as 'denoise' | 'noise',
    ...Object.fromEntries(needs.map((n) => [n, given[n]])),
  }
}

/** Whether both texts have as many tokens, so that they can be compared position by position. */
export const aligned = (answer: PairAnswer | undefined) => answer !== undefined && answer.clean.ids.length === answer.corrupt.ids.length

/** Asks for the tokens of both texts whenever they change. */
export function followPair(): void {
  $effect(() => {
    if (!app.ready) return
    const request = pairRequest()
    if (!request) return
    const key = `${JSON.stringify(request)}#${app.spec?.id}`
    untrack(() => pair.ask(key, async (signal, put) => put(await post<PairAnswer, 'pair'>('pair', request, signal)), pair.value ? 250 : 0))
  })
  $effect(() => {
    if (app.returns > 0) untrack(() => pair.recover())
  })
}

/** The first tokens by which texts of different lengths differ, in words. */
export function lengthWords({ clean, corrupt }: { readonly clean: PairSide; readonly corrupt: PairSide }): string {
  const at = clean.ids.findIndex((id, i) => id !== corrupt.ids[i])
  let [a, b] = [clean.ids.length, corrupt.ids.length]
  while (a > at && b > at && clean.ids[a - 1] === corrupt.ids[b - 1]) [a, b] = [a - 1, b - 1]
  const part = (pieces: readonly string[]) => `“${pieces.join('').trim()}”`
  const count = (n: number) => `${n} ${n === 1 ? 'token' : 'tokens'}`
  return `${part(clean.pieces.slice(at, a))} is ${count(a - at)} and ${part(corrupt.pieces.slice(at, b))} is ${count(b - at)}`
}
