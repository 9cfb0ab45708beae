/** @file Gradients in ONNX files: the part between the places and the loss is written in our ops, the rest is run as it is in the file. */
import { EditError, ModelError, nearest, UsageError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import {
  cast,
  differentiate,
  externalPlace,
  floatTypes,
  input,
  isExternal,
  lift,
  lifts,
  type NodeProto,
  order,
  Program,
  sum,
  type Tensor,
  type TensorProto,
  weight,
} from '../../tensor/index.ts'
import { batchOfTensors } from '../batch.ts'
import { type Loss, type LossFunction, lossFeeds, lossFunction, tracedRun } from '../losses.ts'
import type { OnnxValue } from './core.ts'
import { editFeeds, traceEdits } from './edits.ts'
import { type OnnxInputs, stepOf } from './inputs.ts'
import type { OnnxActivation, OnnxModel } from './model.ts'
import { isFloat, type OnnxSite, pathPrefix } from './sites.ts'
import { storedValue } from './stored.ts'

/** What to differentiate, and where. */
export interface OnnxGradientRequest {
  /** A loss on the output `logits`, a function of the run, or the sum of a site's values. */
  readonly of: Loss | LossFunction | { readonly sum: string }
  /** Sites: canonical names, `path:NAME`, or patterns. */
  readonly at?: string | readonly string[]
  /** Weights of the file by their names. */
  readonly parameters?: readonly string[]
}

/** Gradients of a scalar. */
export interface OnnxGradientResult {
  readonly value: number
  readonly sites: Readonly<Record<string, OnnxActivation>>
  readonly parameters: Readonly<Record<string, NDArray>>
}

/**
 * Runs a file forward and differentiates it. Programs are made for the shapes of the input at hand.
 * @throws ModelError that names the operator where the way from a place to the loss has one without a rule; nothing has run then.
 */
export async function onnxGradient(
  model: OnnxModel,
  request: OnnxGradientRequest,
  given: OnnxInputs,
  options: { readonly signal?: AbortSignal | undefined } = {},
): Promise<OnnxGradientResult> {
  const { core } = model.parts
  const patterns = request.at === undefined ? [] : typeof request.at === 'string' ? [request.at] : request.at
  const sites = [...new Map(patterns.flatMap((p) => model.resolve(p)).map((s) => [s.site, s])).values()]
  const weights = (request.parameters ?? []).map((name) => parameter(model, name))
  const at = [...sites, ...weights]
  if (at.length === 0) throw new UsageError('Name at least one site or parameter to differentiate at.')
  for (const s of at)
    if (!isFloat(s)) throw new UsageError(`A gradient needs floating-point values, but '${s.site}' is ${s.tensor.dtype ?? s.tensor.other}.`)
  const { of } = request
  const target = typeof of === 'object' && 'sum' in of ? model.resolve(of.sum)[0] : model.resolve(`${pathPrefix}logits`)[0]
  const path = wayBetween(model, at, target as OnnxSite)
  const feeds = model.complete(given)
  const step = stepOf(feeds)
  const out = await model.plainValues(path.fetch, feeds, step, options.signal)
  const lifted = new Lifted(model, path, out)
  const traced = (site: OnnxSite) => lifted.of(site.tensor.name)
  const runFeeds: Record<string, NDArray> = {}
  let scalar: Tensor
  if (typeof of === 'object' && 'sum' in of) scalar = sum(cast(traced(target as OnnxSite), 'float32'))
  else {
    const { loss, values } = lossOf(of, traced(target as OnnxSite), feeds, (name) => traced(model.resolve(name)[0] as OnnxSite))
    scalar = loss
    Object.assign(runFeeds, values)
  }
  for (const e of model.prepared) Object.assign(runFeeds, editFeeds(e, step, undefined, new Map()))
  const places = at.map(traced)
  const { of: value, grads } = differentiate({ of: scalar, at: places })
  const outputs = Object.fromEntries([['value', value], ...grads.map((g, i) => [`grad:${i}`, g] as const)])
  const { device, threads } = core.options
  const program = await Program.of(outputs, { cache: core.sessions, device, ...(threads ? { threads } : {}) })
  const needed = Object.fromEntries([...program.inputs.keys()].map((n) => [n, (runFeeds[n] ?? lifted.feeds[n]) as NDArray]))
  const result = await program.run(needed, { signal: options.signal })
  const gradient = (i: number) => result[`grad:${i}`] as NDArray
  return {
    value: Number((result.value as NDArray).data[0]),
    sites: Object.fromEntries(
      sites.map((s, i) => [s.site, { site: s.site, ...gradient(i), ...(s.axes ? { axes: s.axes } : {}) } as OnnxActivation]),
    ),
    parameters: Object.fromEntries(weights.map((w, i) => [w.tensor.name, gradient(sites.length + i)])),
  }
}

function parameter(model: OnnxModel, name: string): OnnxSite {
  const tensor = model.parts.core.tensors.get(name)
  if (tensor?.kind === 'weight') return { site: `${pathPrefix}${name}`, tensor }
  const names = [...model.parts.core.tensors.values()].filter((t) => t.kind === 'weight').map((t) => t.name)
  const near = nearest(name, names)
  throw new ModelError(`The file holds no weight '${name}'${near ? `; did you mean '${near}'?` : '.'}`)
}

interface Way {
  /** Nodes between the places and the target, in order. */
  readonly nodes: readonly NodeProto[]
  /** Tensors that depend on a place. */
  readonly moving: ReadonlySet<string>
  /** Places that depend on no other. */
  readonly leaves: ReadonlySet<string>
  /** Tensors whose values the way needs. */
  readonly fetch: readonly string[]
}

/** The nodes between places and target; refuses those without a rule, and places that the target does not depend on. */
function wayBetween(model: OnnxModel, at: readonly OnnxSite[], target: OnnxSite): Way {
  const { file, tensors } = model.parts.core
  const nodes = order(file.graph).map((i) => file.graph.node[i] as NodeProto)
  const float = (name: string) => {
    const dtype = tensors.get(name)?.dtype
    return dtype !== undefined && floatTypes.includes(dtype)
  }
  const places = new Set(at.map((s) => s.tensor.name))
  const moving = new Set(places)
  const leaves = new Set(places)
  for (const node of nodes) {
    if (!node.input.some((i) => moving.has(i))) continue
    for (const name of node.output) {
      if (!float(name)) continue
      moving.add(name)
      leaves.delete(name)
    }
  }
  const wanted = new Set([target.tensor.name])
  const way: NodeProto[] = []
  for (const node of nodes.toReversed()) {
    if (!node.output.some((o) => wanted.has(o) && moving.has(o) && !leaves.has(o))) continue
    way.unshift(node)
    for (const name of node.input) if (moving.has(name)) wanted.add(name)
  }
  for (const s of at)
    if (!wanted.has(s.tensor.name))
      throw new EditError(
        `The value to differentiate does not depend on '${s.site}' in a differentiable way, so there is no gradient there.`,
      )
  for (const node of way)
    if (!lifts(node))
      throw new ModelError(
        `The operator '${node.opType}' of the node '${node.name || node.output[0]}' has no gradient rule, and lies between the places and the loss; name places after it.`,
      )
  const sides = way.flatMap((n) => n.input.filter((i) => i !== '' && !moving.has(i)))
  const computed = [...sides, ...[...leaves].filter((n) => wanted.has(n))].filter((n) => tensors.get(n)?.kind !== 'weight')
  const read = model.prepared.flatMap((e) => [...(e.when ? [e.when.at] : []), ...e.reads]).map((s) => s.tensor.name)
  return { nodes: way, moving, leaves, fetch: [...new Set([...computed, ...read.filter((n) => !moving.has(n))])] }
}

/** The nodes of a way in our ops. */
class Lifted {
  readonly feeds: Record<string, NDArray> = {}
  private readonly model: OnnxModel
  private readonly values: Readonly<Record<string, OnnxValue>>
  private readonly traced = new Map<string, Tensor>()
  private readonly weights: ReadonlyMap<string, TensorProto>
  private readonly numbers = new Map<string, NDArray>()

  constructor(model: OnnxModel, way: Way, values: Readonly<Record<string, OnnxValue>>) {
    this.model = model
    this.values = values
    const { file, opset, tensors } = model.parts.core
    this.weights = new Map(file.graph.initializer.map((t) => [t.name, t]))
    for (const [name, v] of Object.entries(values)) if (v.dtype !== 'string') this.numbers.set(name, v)
    for (const t of file.graph.initializer)
      if (tensors.get(t.name)?.dtype === 'int64' || t.dims.length === 0) this.numbers.set(t.name, arrayOfProto(t))
    for (const node of way.nodes) {
      const x = node.input.map((name) => (name === '' ? undefined : this.of(name)))
      const out = lift(node, opset, x, this.numbers)
      for (const [i, name] of node.output.entries())
        if (name !== '' && out[i] && !way.leaves.has(name)) this.traced.set(name, this.edited(name, out[i] as Tensor))
    }
  }

  /** The traced counterpart of a tensor: computed in our ops, or fed. */
  of(name: string): Tensor {
    const known = this.traced.get(name)
    if (known) return known
    const proto = this.weights.get(name)
    const t = proto && !this.values[name] ? this.weight(proto) : this.fed(name)
    this.traced.set(name, t)
    return t
  }

  private fed(name: string): Tensor {
    const value = this.values[name]
    if (!value || value.dtype === 'string') throw new ModelError(`The gradient needs the value of '${name}', which is no array of numbers.`)
    this.feeds[`value:${name}`] = value
    return input(`value:${name}`, value.dtype, value.shape)
  }

  private weight(t: TensorProto): Tensor {
    const array = arrayOfProto(t)
    const bytes = new Uint8Array(array.data.buffer, array.data.byteOffset, array.data.byteLength)
    if (!this.model.parts.core.options.filesUsed) {
      const key = `weights/${t.name}`
      const leaf = weight({ name: t.name, dtype: array.dtype, shape: array.shape, place: { data: bytes, key } })
      return this.edited(t.name, leaf)
    }
    if (isExternal(t)) {
      const { location, offset, length } = externalPlace(t)
      return this.edited(
        t.name,
        weight({ name: t.name, dtype: array.dtype, shape: array.shape, place: { path: `/${location}`, offset, bytes: length } }),
      )
    }
    this.feeds[`value:${t.name}`] = array
    return this.edited(t.name, input(`value:${t.name}`, array.dtype, array.shape))
  }

  private edited(name: string, value: Tensor): Tensor {
    const own = this.model.prepared.filter((e) => e.at.tensor.name === name)
    if (own.length === 0) return value
    return traceEdits(own, (site) => (site.tensor.name === name ? value : this.of(site.tensor.name))).result
  }
}

/** A weight of a file as an array; what lies in other files is known by type and shape alone. */
function arrayOfProto(t: TensorProto): NDArray {
  const value = isExternal(t) ? undefined : storedValue(t)
  if (value && value.dtype !== 'string') return value
  return { dtype: 'float32', shape: t.dims.map(Number), data: new Float32Array(0) }
}

function lossOf(of: Loss | LossFunction, logits: Tensor, feeds: Readonly<Record<string, OnnxValue>>, site: (name: string) => Tensor) {
  const ids = feeds.input_ids as NDArray | undefined
  if (!ids || logits.rank !== 3)
    throw new ModelError(
      "This loss needs an input 'input_ids' and an output 'logits' [batch, pos, d_vocab]; differentiate { sum: SITE } instead.",
    )
  const mask = feeds.attention_mask as NDArray | undefined
  const batch = batchOfTensors({ input_ids: ids, ...(mask?.shape.join() === ids.shape.join() ? { attention_mask: mask } : {}) })
  if (batch.columns.some((c) => c.some((column, i) => column !== i)))
    throw new UsageError('A loss over tokens needs rows that are padded on the right, if at all.')
  const values = lossFeeds(of, batch, logits.shape[2] as number, {
    one: (name) => {
      throw new UsageError(`The inner product with '${name}' is not served for ONNX files; give the loss as a function of the run.`)
    },
  })
  const loss = lossFunction(of)(tracedRun(logits, site))
  return { loss, values }
}
