/** @file The graph of a differentiated run. */
import { ModelError, nearest } from '../base/errors.ts'
import type { SiteInfo } from '../sites/address.ts'
import type { PreparedEdit } from '../sites/prepare.ts'
import { type EditedGraph, rewriteModel } from '../sites/rewrite.ts'
import { differentiateWithin, type SavedPolicy, type Tensor, topological } from '../tensor/index.ts'
import type { ModelCore } from './core.ts'
import { type Loss, type LossFunction, lossFunction, tracedRun } from './losses.ts'

/** A parameter of an edit. */
export interface EditParameter {
  readonly edit: PreparedEdit
  readonly name: string
}

/** Names of a gradient program's outputs. */
export const gradientNames = {
  value: 'value',
  site: (s: string) => `grad:${s}`,
  tap: (s: string) => `tap:${s}`,
  parameter: (n: string) => `grad.param:${n}`,
  edit: (p: EditParameter) => `grad.edit:${p.edit.key}.${p.name}`,
}

/** The parameters of edits that have gradients: all but seeds. */
export function editParameters(edits: readonly PreparedEdit[]): EditParameter[] {
  return edits.flatMap((edit) => [...edit.params].filter(([, p]) => p.seed === undefined).map(([name]) => ({ edit, name })))
}

/** What a run is traced for. */
export interface ScalarRequest {
  readonly edits: readonly PreparedEdit[]
  readonly of: Loss | LossFunction
  /** Canonical sites that are read beside those that the scalar reads. */
  readonly taps: readonly string[]
  readonly explicitPositions: boolean
  readonly start?: string | undefined
}

/** A traced run with a scalar of it. */
export interface ScalarGraph {
  readonly value: Tensor
  readonly graph: EditedGraph
  /** The value of a site that was asked for. */
  readonly site: (name: string) => Tensor
}

/** Traces a run and a scalar of it, with the sites that it reads. */
export function traceScalar(core: ModelCore, request: ScalarRequest): ScalarGraph {
  const { edits, of, taps, explicitPositions, start } = request
  const traced = core.trace({ cache: false, explicitPositions, slots: false, lastOnly: false })
  // A first pass finds out which sites a loss reads, since they must be written out before it can see them.
  const reads = new Map<string, SiteInfo>()
  lossFunction(of)(
    tracedRun(traced.logits, (name) => {
      const info = core.resolver.one(name)
      reads.set(name, info)
      return traced.sites.get(info.site) ?? innerStandIn(traced, info)
    }),
  )
  // A loss that reads sites alone may leave the rest of the model out.
  const usesLogits = typeof of === 'function' || of.kind !== 'inner-product'
  const graph = rewriteModel(traced, {
    edits,
    taps: [...new Set([...taps, ...[...reads.values()].map((i) => i.site)])],
    start: start === undefined ? undefined : [start],
    expandAttention: explicitPositions && core.rotates,
    uses: { logits: usesLogits, caches: false },
  })
  const site = (name: string) => graph.taps.get((reads.get(name) ?? core.resolver.one(name)).site) as Tensor
  return { value: lossFunction(of)(tracedRun(graph.logits, site)), graph, site }
}

/** What is differentiated, and at what. */
export interface GradientGraphRequest extends Omit<ScalarRequest, 'taps'> {
  readonly sites: readonly SiteInfo[]
  /** Canonical sites whose values are read only. */
  readonly conditions: readonly string[]
  readonly parameters: readonly string[]
  readonly ofEdits: readonly EditParameter[]
  readonly saved: SavedPolicy | undefined
  /** Shapes of the inputs by name, for a policy with a budget. */
  readonly lengths: ReadonlyMap<string, readonly number[]>
}

/** The outputs of a gradient program. */
export function gradientGraph(core: ModelCore, request: GradientGraphRequest): Record<string, Tensor> {
  const { sites, conditions, parameters, ofEdits } = request
  const { value, site } = traceScalar(core, { ...request, taps: [...sites.map((s) => s.site), ...conditions] })
  const fed = new Map(
    topological([value]).flatMap((n) => (n.op.name === 'input' ? [[n.attrs.name as string, n.outputs[0] as Tensor]] : [])),
  )
  const at = [
    ...sites.map((s) => site(s.site)),
    ...parameters.map((n) => parameterTensor(core, n)),
    ...ofEdits.map(({ edit, name }) => {
      const t = fed.get(`${edit.key}.${name}`)
      if (!t)
        throw new ModelError(
          `The value to differentiate does not depend on '${name}' of the edit ${edit.label}, so there is no gradient there.`,
        )
      return t
    }),
  ]
  const d = differentiateWithin({ of: value, at }, request.saved, axisLengths(fed, request.lengths))
  const outputs: Record<string, Tensor> = { [gradientNames.value]: d.of }
  for (const [i, s] of sites.entries()) outputs[gradientNames.site(s.site)] = d.grads[i] as Tensor
  for (const s of new Set([...sites.map((s) => s.site), ...conditions])) outputs[gradientNames.tap(s)] = d.map(site(s))
  for (const [i, n] of parameters.entries()) outputs[gradientNames.parameter(n)] = d.grads[sites.length + i] as Tensor
  for (const [i, p] of ofEdits.entries()) outputs[gradientNames.edit(p)] = d.grads[sites.length + parameters.length + i] as Tensor
  return outputs
}

/** The lengths of the named axes, from the shapes of inputs. */
function axisLengths(inputs: ReadonlyMap<string, Tensor>, shapes: ReadonlyMap<string, readonly number[]>): Map<string, number> {
  const lengths = new Map<string, number>()
  for (const [name, t] of inputs) {
    const shape = shapes.get(name)
    for (const [i, d] of t.shape.entries()) if (shape && typeof d === 'string') lengths.set(d, shape[i] as number)
  }
  return lengths
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
