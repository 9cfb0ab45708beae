/** @file Features of texts: the activation of each text at some sites, at one token or as a mean. */
import { RuntimeFailure, UsageError } from '../base/errors.ts'
import type { WorkOptions } from '../base/progress.ts'
import { openCorpus, type PassSettings, passOver, planPass } from '../explore/index.ts'
import type { Model } from '../run/index.ts'
import type { Position } from '../steer/index.ts'
import type { Features } from './solver.ts'

/** Options of {@link readFeatures}. */
export interface FeatureOptions extends WorkOptions {
  /** Texts or token ids. */
  readonly texts: readonly (string | readonly number[])[]
  /** Sites, aliases or patterns. */
  readonly site: string | readonly string[]
  /** Which token of each text is read: last (default), mean of all, or a number, negative from the end. */
  readonly position?: Position
}

/** Activations of texts. */
export interface TextFeatures {
  /** By canonical site, [texts, width]. */
  readonly sites: ReadonlyMap<string, Features>
  /** Token ids that each text's activation was read at. */
  readonly tokens: readonly (readonly number[])[]
  readonly position: Position
  /** Texts that are longer than the context; the part that was read is the last one for `last`, all for `mean`, else the first. */
  readonly cut: number
}

/** Runs a model over texts and keeps one activation for each text and site. */
export async function readFeatures(model: Model, options: FeatureOptions): Promise<TextFeatures> {
  const { texts, site, position = 'last', signal, onProgress } = options
  if (position !== 'last' && position !== 'mean' && !Number.isInteger(position))
    throw new UsageError(`position must be 'last', 'mean' or an integer (negative from the end), not ${JSON.stringify(position)}.`)
  const place = position === 'last' ? -1 : position
  const settings: PassSettings = { sites: site, ...(place === 'mean' ? {} : { where: { positions: place } }) }
  const plan = planPass(model, settings)
  const empty = texts.findIndex((t) => (typeof t === 'string' ? t.trim() : t).length === 0)
  if (empty >= 0) throw new UsageError(`Text ${empty} is empty; give each example a text.`)
  const corpus = await openCorpus(texts, signal ? { signal } : {})
  const n = texts.length
  const sites = new Map(plan.sites.map((s) => [s.site, new Float32Array(n * s.width)]))
  const tokens = texts.map((): number[] => [])
  const counts = new Int32Array(n)
  const long = new Set<number>()
  const task = 'reading activations'
  onProgress?.({ task, done: 0, total: n, unit: 'texts' })
  for await (const window of passOver(model, corpus, plan, signal ? { signal } : {})) {
    for (const row of window.rows) if ((row.position[0] as number) > 0) long.add(row.document[0] as number)
    for (let r = 0; r < window.count; r++) {
      const text = window.document[r] as number
      // Of a text in several rows, a place from its beginning is in the first one, a place from its end in the last one.
      if (place !== 'mean' && place >= 0 && counts[text] !== 0) continue
      counts[text] = place === 'mean' ? (counts[text] as number) + 1 : 1
      if (place !== 'mean') tokens[text] = []
      tokens[text]?.push(window.tokens[r] as number)
      for (const { site: name, width } of plan.sites) {
        const row = (window.values.get(name) as Float32Array).subarray(r * width, (r + 1) * width)
        const out = (sites.get(name) as Float32Array).subarray(text * width, (text + 1) * width)
        if (place === 'mean') for (let j = 0; j < width; j++) out[j] = (out[j] as number) + (row[j] as number)
        else out.set(row)
      }
    }
    onProgress?.({ task, done: (window.next?.document ?? n) as number, total: n, unit: 'texts' })
  }
  const missing = counts.indexOf(0)
  if (missing >= 0) throw new UsageError(`Text ${missing} has no position ${position}; choose another position.`)
  const features = new Map<string, Features>()
  for (const { site: name, width } of plan.sites) {
    const data = sites.get(name) as Float32Array
    if (place === 'mean') for (let i = 0; i < data.length; i++) data[i] = (data[i] as number) / (counts[Math.floor(i / width)] as number)
    const bad = data.find((v) => !Number.isFinite(v))
    if (bad !== undefined)
      throw new RuntimeFailure(`The model gave ${bad} at '${name}', so nothing can be learned there; look at its edits and its weights.`)
    features.set(name, { dtype: 'float32', shape: [n, width], data })
  }
  return { sites: features, tokens, position, cut: long.size }
}
