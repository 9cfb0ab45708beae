/** @file Gradients of a run: of any scalar, with respect to sites and parameters at once. */
import { ModelError, nearest, UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import type { SiteInfo } from '../sites/address.ts'
import { type FireCounts, feedsOf, type PreparedEdit } from '../sites/prepare.ts'
import { rewriteModel } from '../sites/rewrite.ts'
import { differentiate, type Tensor } from '../tensor/index.ts'
import { type Activation, type Batch, checkInput, passOf, toCaller } from './batch.ts'
import type { ModelCore } from './core.ts'
import { needLogits } from './inputs.ts'
import { type Loss, type LossFunction, lossFeeds, lossFunction, lossKey, readsLogits, tracedRun } from './losses.ts'
import { checkTokensKnown, type PreparedStart, type Start, startFeeds } from './start.ts'

/** What to differentiate, and with respect to what. */
export interface GradientRequest {
  /** A loss as data, or a function from a traced run to a scalar. */
  readonly of: Loss | LossFunction
  /** Sites, aliases or patterns. */
  readonly at?: string | readonly string[]
  /** Parameters by their names in the checkpoint. */
  readonly parameters?: readonly string[]
}

/** Options of a gradient. */
export interface GradientOptions {
  /** Begins with an activation at a site instead of with the tokens; its gradient is had by naming the site. */
  readonly from?: Start
  /** Stops between segments with a `CancelledError`. */
  readonly signal?: AbortSignal | undefined
}

/** Gradients of one scalar. */
export interface GradientResult {
  /** The scalar itself. */
  readonly value: number
  /** By canonical site: shape of the site. */
  readonly sites: Readonly<Record<string, Activation>>
  /** Values of those sites in the same run. */
  readonly activations: Readonly<Record<string, Activation>>
  /** By name in the checkpoint: shape of the parameter as it is stored there. */
  readonly parameters: Readonly<Record<string, NDArray<Float32Array>>>
}

const output = {
  value: 'value',
  site: (s: string) => `grad:${s}`,
  tap: (s: string) => `tap:${s}`,
  parameter: (n: string) => `grad.param:${n}`,
}

const functionIds = new WeakMap<LossFunction, number>()
let nextId = 0
function keyOf(of: Loss | LossFunction): string {
  if (typeof of !== 'function') return lossKey(of)
  if (!functionIds.has(of)) functionIds.set(of, nextId++)
  return `#${functionIds.get(of)}`
}

/** Runs a batch forward and backward. Edits are in force; gradients at a site are those of its value after the edits there. */
export async function gradientOf(
  core: ModelCore,
  edits: readonly PreparedEdit[],
  batch: Batch,
  request: GradientRequest,
  { signal, start }: { signal?: AbortSignal | undefined; start?: PreparedStart | undefined } = {},
): Promise<GradientResult> {
  const { architecture } = core
  checkInput(batch, architecture, core.options.contextLength)
  if (typeof request.of !== 'function' && readsLogits(request.of)) needLogits(architecture, `the loss ${request.of.kind}`)
  const patterns = request.at === undefined ? [] : typeof request.at === 'string' ? [request.at] : request.at
  const sites = [...new Map(patterns.flatMap((p) => core.resolver.many(p)).map((i) => [i.site, i])).values()]
  const parameters = request.parameters ?? []
  if (sites.length === 0 && parameters.length === 0) throw new UsageError('Name at least one site or parameter to differentiate at.')
  const explicitPositions = batch.positions !== undefined
  const key = JSON.stringify([
    'gradient',
    edits.map((e) => [e.key, e.structure]),
    sites.map((s) => s.site),
    parameters,
    keyOf(request.of),
    explicitPositions,
    start?.info.site,
  ])
  const program = await core.compiled(key, () => build(core, edits, sites, parameters, request.of, explicitPositions, start?.info.site))
  checkTokensKnown(batch, start, program.inputs, edits)
  if (batch.anonymous && typeof request.of !== 'function' && request.of.kind === 'next-token')
    throw new UsageError('The loss next-token predicts tokens, so it needs them: give the tokens, too.')
  const pass = passOf(architecture, batch)
  const fired: FireCounts = new Map()
  const feeds: Record<string, NDArray> = {
    ...core.constantFeeds,
    ...pass.feeds,
    ...lossFeeds(request.of, batch, core.architecture.stacks.find((s) => s.head)?.vocab ?? 0),
    ...startFeeds(start, batch),
  }
  for (const e of edits) Object.assign(feeds, feedsOf(e, pass.places, fired))
  const out = await program.run(feeds, { signal })
  const named = (name: (s: string) => string, fill?: number) =>
    Object.fromEntries(sites.map((s) => [s.site, toCaller(s, out[name(s.site)] as NDArray, batch, fill)]))
  return {
    value: Number(out[output.value]?.data[0]),
    // Nothing depends on a place without a token, whatever its value is written as.
    sites: named(output.site, 0),
    activations: named(output.tap),
    parameters: Object.fromEntries(parameters.map((n) => [n, out[output.parameter(n)] as NDArray<Float32Array>])),
  }
}

function build(
  core: ModelCore,
  edits: readonly PreparedEdit[],
  sites: readonly SiteInfo[],
  parameters: readonly string[],
  of: Loss | LossFunction,
  explicitPositions: boolean,
  start: string | undefined,
): Record<string, Tensor> {
  const traced = core.trace({ cache: false, explicitPositions, slots: false, lastOnly: false })
  const asked = new Map<string, SiteInfo>()
  // A first pass finds out which sites a loss function reads, since they must be written out before it can see them.
  const reads = new Set<string>()
  if (typeof of === 'function')
    of(
      tracedRun(traced.logits, (name) => {
        const info = core.resolver.one(name)
        reads.add(info.site)
        asked.set(name, info)
        return traced.sites.get(info.site) ?? innerStandIn(traced, info)
      }),
    )
  const graph = rewriteModel(traced, {
    edits,
    taps: [...new Set([...sites.map((s) => s.site), ...reads])],
    start: start === undefined ? undefined : [start],
    expandAttention: explicitPositions && core.rotates,
    uses: { logits: true, caches: false },
  })
  const value = lossFunction(of)(
    tracedRun(graph.logits, (name) => graph.taps.get((asked.get(name) ?? core.resolver.one(name)).site) as Tensor),
  )
  const at = [...sites.map((s) => graph.taps.get(s.site) as Tensor), ...parameters.map((n) => parameterTensor(core, n))]
  const d = differentiate({ of: value, at, cut: true })
  const outputs: Record<string, Tensor> = { [output.value]: d.of }
  for (const [i, s] of sites.entries()) {
    outputs[output.site(s.site)] = d.grads[i] as Tensor
    outputs[output.tap(s.site)] = d.map(graph.taps.get(s.site) as Tensor)
  }
  for (const [i, n] of parameters.entries()) outputs[output.parameter(n)] = d.grads[sites.length + i] as Tensor
  return outputs
}

/** A tensor of the right shape for a site inside a composite, during the pass that only asks for names. */
function innerStandIn(traced: ReturnType<ModelCore['trace']>, info: SiteInfo): Tensor {
  const graph = rewriteModel(traced, { edits: [], taps: [info.site], uses: { logits: false, caches: false } })
  return graph.taps.get(info.site) as Tensor
}

function parameterTensor(core: ModelCore, name: string): Tensor {
  const found = core.parameter(name)
  if (found) return found
  const near = nearest(name, core.weights.names)
  throw new ModelError(`The model reads no parameter '${name}'${near ? `; did you mean '${near}'?` : '.'}`)
}
