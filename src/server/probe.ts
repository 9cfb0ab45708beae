/** @file Probes: studies kept by content, read live on new text, and handed on as directions and conditions. */
import { UsageError } from '../base/errors.ts'
import { columnOf, type Probe, probe, type SiteResult, type StudyResult, tableOf, usualColumns } from '../probe/index.ts'
import type { Activation } from '../run/index.ts'
import { pieceOf } from './lens.ts'
import { editedModel, idsOf, rounded } from './look.ts'
import type { BodyOf, ProbeDirectionAnswer, ProbedSite, ProbeLine, ProbeReadAnswer } from './protocol.ts'
import type { Held } from './registry.ts'

/** Studies whose probes are kept for each model. */
const kept = 8

/** Finished studies of models, by what they were made from. */
const studies = new WeakMap<Held, Map<string, StudyResult>>()

function studiesOf(held: Held): Map<string, StudyResult> {
  const known = studies.get(held) ?? new Map<string, StudyResult>()
  studies.set(held, known)
  return known
}

const keyOf = (body: BodyOf<'probe'>) => JSON.stringify({ ...body, model: undefined })

/** Writes the lines of a study; one that was made before is told at once. */
export async function writeProbe(held: Held, body: BodyOf<'probe'>, send: (line: ProbeLine) => void, signal: AbortSignal): Promise<void> {
  const begun = performance.now()
  const { texts, labels, text, label } = labelled(body)
  const sites = body.sites.flatMap((p) => held.model.resolve(p))
  send({ type: 'head', examples: texts.length, text, label, sites: sites.length })
  const known = studiesOf(held).get(keyOf(body))
  if (known) for (const site of known.sites) send({ type: 'site', ...siteOf(held, site) })
  const study = known ?? (await made(held, body, { texts, labels }, signal, send))
  send({
    type: 'end',
    classes: study.classes,
    ...(study.majority === undefined ? {} : { majority: study.majority }),
    groups: study.groups,
    folds: study.folds,
    warnings: study.warnings,
    ms: Math.round(performance.now() - begun),
  })
}

async function made(
  held: Held,
  body: BodyOf<'probe'>,
  { texts, labels }: { texts: readonly string[]; labels: readonly string[] },
  signal: AbortSignal,
  send?: (line: ProbeLine) => void,
): Promise<StudyResult> {
  const { kind, position, seed, sites } = body
  const model = await editedModel(held, body.edits)
  const study = await held.queue.inTurns(
    (pause) =>
      probe(model, {
        texts,
        labels,
        site: sites,
        kind,
        position,
        seed,
        signal,
        onProgress: (p) => send?.({ type: 'progress', ...p }),
        onSite: async (site) => {
          send?.({ type: 'site', ...siteOf(held, site) })
          await pause()
        },
      }),
    signal,
  )
  const own = studiesOf(held)
  own.set(keyOf(body), study)
  for (const old of own.keys()) if (own.size > kept) own.delete(old)
  return study
}

function labelled(body: BodyOf<'probe'>) {
  const table = tableOf(body.data, 'The labelled texts')
  const text = columnOf(table, body.text, usualColumns.text, 'text')
  const label = columnOf(table, body.label, usualColumns.label, 'label')
  return { texts: text.values, labels: label.values, text: text.name, label: label.name }
}

function siteOf(held: Held, { site, scores, controls }: SiteResult): ProbedSite {
  const { layer } = held.model.site(site)
  return {
    site,
    ...(layer === undefined ? {} : { layer }),
    scores: Object.fromEntries(
      Object.entries(scores).map(([name, { value, low, high }]) => [
        name,
        { value: rounded(value), low: rounded(low), high: rounded(high) },
      ]),
    ),
    controls: Object.fromEntries(Object.entries(controls).map(([name, value]) => [name, rounded(value)])),
  }
}

/** The probe of a study at a site; made anew where the server has forgotten it. */
async function probeAt(held: Held, study: BodyOf<'probe'>, site: string, signal: AbortSignal): Promise<Probe> {
  const { site: canonical } = held.model.site(site)
  const result = studiesOf(held).get(keyOf(study)) ?? (await made(held, study, labelled(study), signal))
  const found = result.sites.find((s) => s.site === canonical)
  if (!found) throw new UsageError(`The study has no probe at '${site}'; choose one of ${result.sites.map((s) => s.site).join(', ')}.`)
  return found.probe
}

/** The scores of a probe at each token of a text. */
export async function probeReadAnswer(held: Held, body: BodyOf<'probe-read'>, signal: AbortSignal): Promise<ProbeReadAnswer> {
  const { model } = held
  const reader = await probeAt(held, body.study, body.site, signal)
  const ids = idsOf(model, body)
  const edited = await editedModel(held, body.study.edits)
  const { taps } = await held.queue.run(() => edited.run({ ids }, { taps: [reader.site], signal }), signal)
  const row = (taps[reader.site] as Activation).row(0)
  const values = { dtype: 'float32', shape: [ids.length, row.data.length / ids.length], data: row.data } as const
  const scores = await reader.scores(values)
  const { outputs } = reader
  return {
    pieces: ids.map((id) => pieceOf(model, id)),
    classes: reader.classes,
    scores: ids.map((_, n) => Array.from(scores.subarray(n * outputs, (n + 1) * outputs), rounded)),
    ...(reader.calibration ? { p: Array.from(await reader.probabilities(values), rounded) } : {}),
  }
}

/** The probe as a direction and as a condition. */
export async function probeDirectionAnswer(
  held: Held,
  body: BodyOf<'probe-direction'>,
  signal: AbortSignal,
): Promise<ProbeDirectionAnswer> {
  const reader = await probeAt(held, body.study, body.site, signal)
  const when = reader.when()
  const length = (v: ArrayLike<number>) => Math.sqrt(Array.from(v).reduce((s, x) => s + x * x, 0))
  const factor = length(reader.scaler.scale) / length(reader.weights)
  return {
    site: reader.site,
    vector: Array.from(reader.weights, (w) => rounded(w * factor)),
    when: { site: reader.site, vector: Array.from(when.vector, rounded), above: rounded(when.above as number) },
  }
}
