/** @file Jacobian-vector products and Hessian products of a run. */
import { UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import type { SiteInfo } from '../sites/address.ts'
import { axisSize, type PreparedEdit } from '../sites/prepare.ts'
import { rewriteModel } from '../sites/rewrite.ts'
import { hessianVectorProduct, input, jvp, type Tensor } from '../tensor/index.ts'
import { type Activation, type Batch, checkInput, fromCaller, toCaller } from './batch.ts'
import type { ModelCore } from './core.ts'
import { gradientFeeds, keyOfLoss } from './gradient.ts'
import { traceScalar } from './gradient-graph.ts'
import type { Loss, LossFunction } from './losses.ts'

/** A direction at each of some sites: of the site's shape in the layout of the input. */
export type Directions = Readonly<Record<string, Activation | NDArray>>

/** What changes when sites move. */
export interface JvpRequest {
  /** Sites, aliases or patterns whose change is wanted. */
  readonly of: string | readonly string[]
  readonly along: Directions
}

/** Changes of sites. */
export interface JvpResult {
  /** By canonical site. */
  readonly changes: Readonly<Record<string, Activation>>
  readonly values: Readonly<Record<string, Activation>>
}

/** A scalar whose curvature is wanted. */
export interface HessianRequest {
  readonly of: Loss | LossFunction
  readonly along: Directions
}

/** Products of a Hessian. */
export interface HessianResult {
  readonly value: number
  /** By canonical site. */
  readonly products: Readonly<Record<string, Activation>>
  readonly gradients: Readonly<Record<string, Activation>>
}

const directionName = (site: string) => `along:${site}`

/** The directions by site, checked against it, with their feeds. */
function directionsOf(core: ModelCore, along: Directions, batch: Batch): { sites: SiteInfo[]; feeds: Record<string, NDArray> } {
  const sites: SiteInfo[] = []
  const feeds: Record<string, NDArray> = {}
  for (const [name, { dtype, shape, data }] of Object.entries(along)) {
    const info = core.resolver.one(name)
    const wanted = info.row.axes.map((a) => axisSize(a, info.stack) ?? a)
    if (dtype !== 'float32' || shape.length !== wanted.length || wanted.some((n, i) => typeof n === 'number' && n !== shape[i]))
      throw new UsageError(`The direction at ${info.site} must be float32 [${wanted.join(', ')}], not ${dtype} [${shape.join(', ')}].`)
    sites.push(info)
    feeds[directionName(info.site)] = fromCaller(info, { dtype, shape, data }, batch, 0)
  }
  if (sites.length === 0) throw new UsageError('Name at least one site with a direction to move along.')
  return { sites, feeds }
}

const directionAt = (site: SiteInfo, value: Tensor) => input(directionName(site.site), value.dtype, value.shape)
const output = { change: (s: string) => `change:${s}`, value: (s: string) => `tap:${s}`, gradient: (s: string) => `grad:${s}` }

/** How sites change, to first order, when others move along directions. */
export async function jvpOf(
  core: ModelCore,
  edits: readonly PreparedEdit[],
  batch: Batch,
  request: JvpRequest,
  signal?: AbortSignal,
): Promise<JvpResult> {
  checkInput(batch, core.architecture, core.options.contextLength)
  const { sites, feeds: directions } = directionsOf(core, request.along, batch)
  const patterns = typeof request.of === 'string' ? [request.of] : request.of
  const wanted = [...new Map(patterns.flatMap((p) => core.resolver.many(p)).map((i) => [i.site, i])).values()]
  if (wanted.length === 0) throw new UsageError('Name at least one site whose change is wanted.')
  const explicitPositions = batch.positions !== undefined
  const names = { of: wanted.map((i) => i.site), at: sites.map((i) => i.site) }
  const key = JSON.stringify(['jvp', edits.map((e) => [e.key, e.structure]), names, explicitPositions])
  const program = await core.compiled(key, () => {
    const graph = rewriteModel(core.trace({ cache: false, explicitPositions, slots: false, lastOnly: false }), {
      edits,
      taps: [...new Set([...names.of, ...names.at])],
      expandAttention: explicitPositions && core.rotates,
      uses: { logits: false, caches: false },
    })
    const at = sites.map((i) => graph.taps.get(i.site) as Tensor)
    const outputs: Record<string, Tensor> = {}
    for (const { site } of wanted) {
      const product = jvp(
        graph.taps.get(site) as Tensor,
        at,
        at.map((t, i) => directionAt(sites[i] as SiteInfo, t)),
      )
      outputs[output.change(site)] = product.change
      outputs[output.value(site)] = product.of
    }
    return outputs
  })
  const { feeds } = gradientFeeds(core, edits, batch, { kind: 'mean-square' }, undefined)
  const out = await program.run({ ...feeds, ...directions }, { signal })
  const named = (name: (s: string) => string, fill?: number) =>
    Object.fromEntries(wanted.map((i) => [i.site, toCaller(i, out[name(i.site)] as NDArray, batch, fill)]))
  return { changes: named(output.change, 0), values: named(output.value) }
}

/** The Hessian of a scalar with respect to sites, times directions at them: gradients of a gradient. */
export async function hessianOf(
  core: ModelCore,
  edits: readonly PreparedEdit[],
  batch: Batch,
  request: HessianRequest,
  signal?: AbortSignal,
): Promise<HessianResult> {
  checkInput(batch, core.architecture, core.options.contextLength)
  const { sites, feeds: directions } = directionsOf(core, request.along, batch)
  const explicitPositions = batch.positions !== undefined
  const names = sites.map((i) => i.site)
  const key = JSON.stringify(['hessian', edits.map((e) => [e.key, e.structure]), names, keyOfLoss(request.of), explicitPositions])
  const program = await core.compiled(key, () => {
    const { value, site } = traceScalar(core, { edits, of: request.of, taps: names, explicitPositions })
    const at = names.map(site)
    const product = hessianVectorProduct(
      value,
      at,
      at.map((t, i) => directionAt(sites[i] as SiteInfo, t)),
    )
    const outputs: Record<string, Tensor> = { value: product.of }
    for (const [i, name] of names.entries()) {
      outputs[output.change(name)] = product.products[i] as Tensor
      outputs[output.gradient(name)] = product.grads[i] as Tensor
    }
    return outputs
  })
  const { feeds } = gradientFeeds(core, edits, batch, request.of, undefined)
  const out = await program.run({ ...feeds, ...directions }, { signal })
  const named = (name: (s: string) => string) =>
    Object.fromEntries(sites.map((i) => [i.site, toCaller(i, out[name(i.site)] as NDArray, batch, 0)]))
  return { value: Number(out.value?.data[0]), products: named(output.change), gradients: named(output.gradient) }
}
