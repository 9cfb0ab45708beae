/** @file Gradients of a run: of any scalar, with respect to sites, parameters and edits at once. */
import { UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { sequenceOf } from '../sites/address.ts'
import { type FireCounts, feedsOf, type PreparedEdit, type StepPlace } from '../sites/prepare.ts'
import { checkPolicy, keptLimit, type RunReport, type SavedPolicy } from '../tensor/index.ts'
import { type Activation, type Batch, checkInput, passOf, toCaller } from './batch.ts'
import type { ModelCore } from './core.ts'
import { editParameters, gradientGraph, gradientNames } from './gradient-graph.ts'
import { needLogits } from './inputs.ts'
import { type Loss, type LossFunction, lossFeeds, lossKey, readsLogits } from './losses.ts'
import { checkTokensKnown, type PreparedStart, type Start, startFeeds } from './start.ts'
import { resolveTaps, type Selection, selectPlaces, type TapSpec } from './taps.ts'

/** What to differentiate, and with respect to what. */
export interface GradientRequest {
  /** A loss as data, or a function from a traced run to a scalar. */
  readonly of: Loss | LossFunction
  /** Sites, aliases, patterns, or `{ site, where }` for the gradient at a part of a site only. */
  readonly at?: TapSpec | readonly TapSpec[]
  /** Parameters by their names in the checkpoint. */
  readonly parameters?: readonly string[]
  /** The parameters of all edits in force, such as a steering vector and its scale. */
  readonly edits?: boolean
}

/** Options of a gradient. */
export interface GradientOptions {
  /** Begins with an activation at a site instead of with the tokens; its gradient is had by naming the site. */
  readonly from?: Start
  /** What becomes of forward values that the backward pass needs (default `keep`). */
  readonly saved?: SavedPolicy
  /** Stops between segments with a `CancelledError`. */
  readonly signal?: AbortSignal | undefined
}

/** Gradients with respect to the parameters of one edit at one site. */
export interface EditGradient {
  /** `add at resid_post.3` */
  readonly label: string
  readonly site: string
  /** By parameter name: shape of the parameter; of one that has a value for each position, that of the site. */
  readonly params: Readonly<Record<string, NDArray<Float32Array>>>
}

/** Gradients of one scalar. */
export interface GradientResult {
  /** The scalar itself. */
  readonly value: number
  /** By canonical site: shape of the site, or one item for each place that a `where` chose. */
  readonly sites: Readonly<Record<string, Activation>>
  /** Values of those sites in the same run, of the same shapes. */
  readonly activations: Readonly<Record<string, Activation>>
  /** Places that a `where` chose, by canonical site. */
  readonly selected: Readonly<Record<string, Selection>>
  /** By name in the checkpoint: shape of the parameter as it is stored there. */
  readonly parameters: Readonly<Record<string, NDArray<Float32Array>>>
  /** One for each edit and site, in the order of the edits; empty unless asked for. */
  readonly edits: readonly EditGradient[]
  /** What lay between the segments of the program. */
  readonly saved: RunReport
}

const functionIds = new WeakMap<LossFunction, number>()
let nextId = 0
/** What of a loss is part of the compiled program. */
export function keyOfLoss(of: Loss | LossFunction): string {
  if (typeof of !== 'function') return lossKey(of)
  if (!functionIds.has(of)) functionIds.set(of, nextId++)
  return `#${functionIds.get(of)}`
}

/** Everything that is fed to a differentiated run. */
export function gradientFeeds(
  core: ModelCore,
  edits: readonly PreparedEdit[],
  batch: Batch,
  of: Loss | LossFunction,
  start: PreparedStart | undefined,
) {
  const { architecture } = core
  const pass = passOf(architecture, batch)
  const fired: FireCounts = new Map()
  const feeds: Record<string, NDArray> = {
    ...core.constantFeeds,
    ...pass.feeds,
    ...lossFeeds(of, batch, architecture.stacks.find((s) => s.head)?.vocab ?? 0, core.resolver),
    ...startFeeds(start, batch),
  }
  for (const e of edits) Object.assign(feeds, feedsOf(e, pass.places, fired))
  return { feeds, places: pass.places }
}

/** Runs a batch forward and backward. Edits are in force; gradients at a site are those of its value after the edits there. */
export async function gradientOf(
  core: ModelCore,
  edits: readonly PreparedEdit[],
  batch: Batch,
  request: GradientRequest,
  options: Omit<GradientOptions, 'from'> & { readonly start?: PreparedStart | undefined } = {},
): Promise<GradientResult> {
  const { architecture } = core
  const { start, saved, signal } = options
  checkInput(batch, architecture, core.options.contextLength)
  if (typeof request.of !== 'function' && architecture.kind === 'two-towers')
    throw new UsageError(`'${architecture.family}' gives out products of texts and images; give the loss as a function of the run.`)
  if (typeof request.of !== 'function' && readsLogits(request.of)) needLogits(architecture, `the loss ${request.of.kind}`)
  checkPolicy(saved)
  const specs = request.at === undefined ? [] : Array.isArray(request.at) ? (request.at as readonly TapSpec[]) : [request.at as TapSpec]
  const taps = resolveTaps(specs, core.resolver)
  const sites = [...new Map(taps.map((t) => [t.info.site, t.info])).values()]
  const conditions = [...new Set(taps.flatMap((t) => (t.when ? [t.when.info.site] : [])))]
  const parameters = request.parameters ?? []
  const ofEdits = request.edits ? editParameters(edits) : []
  if (request.edits && ofEdits.length === 0)
    throw new UsageError('There is no edit with parameters to differentiate at; add edits with `with`.')
  if (sites.length === 0 && parameters.length === 0 && ofEdits.length === 0)
    throw new UsageError('Name at least one site or parameter to differentiate at.')
  if (batch.anonymous && typeof request.of !== 'function' && request.of.kind === 'next-token')
    throw new UsageError('The loss next-token predicts tokens, so it needs them: give the tokens, too.')
  const explicitPositions = batch.positions !== undefined
  const { feeds, places } = gradientFeeds(core, edits, batch, request.of, start)
  // A budget is reckoned by the lengths of the axes of this input.
  const lengths = typeof saved === 'object' ? Object.entries(feeds).map(([name, { shape }]) => [name, shape] as const) : []
  const key = JSON.stringify([
    'gradient',
    edits.map((e) => [e.key, e.structure]),
    sites.map((s) => s.site),
    conditions,
    parameters,
    request.edits === true,
    keyOfLoss(request.of),
    explicitPositions,
    start?.info.site,
    saved,
    lengths,
  ])
  const graph = () =>
    gradientGraph(core, {
      edits,
      sites,
      conditions,
      parameters,
      ofEdits,
      of: request.of,
      explicitPositions,
      start: start?.info.site,
      saved,
      lengths: new Map(lengths),
    })
  const program = await core.compiled(key, graph, { segments: saved !== undefined && saved !== 'keep' })
  checkTokensKnown(batch, start, program.inputs, edits)
  let report: RunReport = { keptBytes: 0, spilledBytes: 0 }
  const out = await program.run(feeds, { signal, keep: keptLimit(saved), onReport: (r) => (report = r) })

  const result = {
    sites: {} as Record<string, Activation>,
    activations: {} as Record<string, Activation>,
    selected: {} as Record<string, Selection>,
  }
  for (const t of taps) {
    const { site } = t.info
    const [gradient, value] = [out[gradientNames.site(site)] as NDArray, out[gradientNames.tap(site)] as NDArray]
    if (t.restricted) {
      const selection = selectPlaces(
        t,
        (places[sequenceOf(t.info)] as StepPlace).step,
        t.when && (out[gradientNames.tap(t.when.info.site)] as NDArray),
      )
      if (selection.places.length === 0)
        throw new UsageError(`The 'where' at ${site} holds nowhere in this input, so there is no gradient there.`)
      result.selected[site] = selection
      result.sites[site] = selection.of(t.info, gradient)
      result.activations[site] = selection.of(t.info, value)
    } else {
      // Nothing depends on a place without a token, whatever its value is written as.
      result.sites[site] = toCaller(t.info, gradient, batch, 0)
      result.activations[site] = toCaller(t.info, value, batch)
    }
  }
  const array = (name: string) => out[name] as NDArray<Float32Array>
  return {
    value: Number(out[gradientNames.value]?.data[0]),
    ...result,
    parameters: Object.fromEntries(parameters.map((n) => [n, array(gradientNames.parameter(n))])),
    edits: [...new Set(ofEdits.map((p) => p.edit))].map((e) => ({
      label: e.label,
      site: e.info.site,
      params: Object.fromEntries(ofEdits.filter((p) => p.edit === e).map((p) => [p.name, array(gradientNames.edit(p))])),
    })),
    saved: report,
  }
}
