/** @file Lenses: what the model would say if it stopped at a layer, read through its own final norm and unembedding. */
import { ShapeError, UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import type { Model, ModelInput } from '../run/index.ts'
import type { SiteInfo } from '../sites/address.ts'
import { add, exp, gather, input, logSoftmax, matmul, mul, neg, Rewriter, sub, sum, type Tensor, topK } from '../tensor/index.ts'
import { type EditedModel, editedModel, int64, rowFeeds, stackableRows } from './patch-graph.ts'

/** Maps from sites to the last residual stream, by canonical site: what a fitted lens is. */
export interface LensMaps {
  readonly kind: keyof typeof lensKinds
  /** M, [d_model, d_model]. */
  readonly maps: Readonly<Record<string, NDArray<Float32Array>>>
  /** b, [d_model]; zero where a site has none. */
  readonly biases?: Readonly<Record<string, NDArray<Float32Array>>>
}

/** The kinds of fitted lenses: a state x is read as x·Mᵀ + b, or, `residual`, as x + x·Mᵀ + b. */
export const lensKinds = {
  jacobian: { residual: false },
  tuned: { residual: true },
} as const satisfies Readonly<Record<string, { readonly residual: boolean }>>

/** Options of {@link lens}. */
export interface LensOptions {
  /** Residual sites that are read, `resid_post.*` by default: one index of the axis `layer` each. */
  readonly sites?: string | readonly string[]
  /** Most likely tokens that are kept for each place, 10 by default. */
  readonly top?: number
  /** Tokens whose probability is wanted at every place. */
  readonly tokens?: readonly number[]
  /** Keep all logits, [layer, pos, d_vocab]. */
  readonly logits?: boolean
  /** A fitted lens; without it this is the logit lens. */
  readonly maps?: LensMaps
}

/** What a lens reads of one text. */
export interface LensResult {
  readonly kind: 'logit' | LensMaps['kind']
  /** Canonical sites, in the order of the axis `layer`. */
  readonly sites: readonly string[]
  /** Token ids of the text. */
  readonly tokens: readonly number[]
  /** Most likely tokens, int64 [layer, pos, top], with their probabilities. */
  readonly topIds: NDArray<BigInt64Array>
  readonly topProbs: NDArray<Float32Array>
  /** Entropy of each distribution, in nats, [layer, pos]. */
  readonly entropy: NDArray<Float32Array>
  /** KL divergence of each distribution from the model's own, KL(model ‖ lens) in nats, [layer, pos]. */
  readonly kl: NDArray<Float32Array>
  /** Probabilities of the tokens that were asked for, [layer, pos, token]. */
  readonly probabilities?: NDArray<Float32Array>
  /** [layer, pos, d_vocab] */
  readonly logits?: NDArray<Float32Array>
}

const out = (name: string, site: string) => `${name}:${site}`
const mapName = (site: string) => `lens.map:${site}`
const biasName = (site: string) => `lens.bias:${site}`

/** Reads every site of a text through the final norm (with statistics of its own) and the unembedding, in one program. */
export async function lens(model: Model, text: ModelInput, options: LensOptions = {}): Promise<LensResult> {
  const { top = 10, tokens: asked = [], maps } = options
  const { vocab } = model.spec
  if (!Number.isInteger(top) || top < 1 || top > vocab)
    throw new UsageError(`The number of top tokens must be between 1 and ${vocab}, not ${top}.`)
  const bad = asked.find((id) => !Number.isInteger(id) || id < 0 || id >= vocab)
  if (bad !== undefined) throw new UsageError(`The lens is asked for the token ${bad}, but the vocabulary has ids 0 to ${vocab - 1}.`)
  const rows = stackableRows(model, text, 'The text')
  if (rows.length !== 1) throw new UsageError(`A lens reads one text at a time, not ${rows.length}; call it for each.`)
  const tokens = rows[0] as readonly number[]
  const edited = editedModel(model)
  const sites = lensSites(model, options.sites ?? 'resid_post.*')
  const wanted = { top, tokens: asked.length > 0, logits: options.logits ?? false }
  const mapped = maps ? sites.filter((s) => maps.maps[s.site] !== undefined) : []
  if (maps) checkMaps(maps, sites, model)
  const kind = maps?.kind
  const key = JSON.stringify(['lens', edited.structure, sites.map((s) => s.site), kind, mapped.map((s) => s.site), wanted])
  const program = await edited.core.compiled(key, () => lensOutputs(edited, sites, kind, new Set(mapped.map((s) => s.site)), wanted))
  const values = await program.run({
    ...rowFeeds(edited, [tokens]),
    ...(wanted.tokens ? { 'lens.tokens': int64(asked) } : {}),
    ...(maps ? mapFeeds(maps, mapped, model.spec.dModel) : {}),
  })
  const stacked = <T extends Float32Array | BigInt64Array>(name: string) =>
    stack<T>(sites.map((s) => values[out(name, s.site)] as NDArray<T>))
  return {
    kind: maps?.kind ?? 'logit',
    sites: sites.map((s) => s.site),
    tokens,
    topIds: stacked<BigInt64Array>('ids'),
    topProbs: stacked<Float32Array>('probs'),
    entropy: stacked<Float32Array>('entropy'),
    kl: stacked<Float32Array>('kl'),
    ...(wanted.tokens ? { probabilities: stacked<Float32Array>('tokens') } : {}),
    ...(wanted.logits ? { logits: stacked<Float32Array>('logits') } : {}),
  }
}

/** Sites of the residual stream that patterns mean, in the order of the forward pass. */
export function lensSites(model: Model, patterns: string | readonly string[]): SiteInfo[] {
  const found = (typeof patterns === 'string' ? [patterns] : patterns).flatMap((p) => model.resolve(p))
  const other = found.find((s) => s.row.axes.at(-1) !== 'd_model')
  if (other)
    throw new UsageError(`A lens reads vectors that are d_model wide, but '${other.site}' has the axes [${other.row.axes.join(', ')}].`)
  const names = new Set(found.map((s) => s.site))
  if (names.size === 0) throw new UsageError("Name at least one site for the lens, such as 'resid_post.*'.")
  return model.sites().filter((s) => names.has(s.site))
}

/** The site at which the blocks end. */
export const endOf = (model: Model) => `resid_post.${model.spec.layers - 1}`

function checkMaps({ maps, kind }: LensMaps, sites: readonly SiteInfo[], model: Model): void {
  const { dModel } = model.spec
  for (const { site } of sites) {
    const map = maps[site]
    if (!map && site !== endOf(model))
      throw new UsageError(`The ${kind} lens was not fitted at '${site}'; it knows ${Object.keys(maps).join(', ')}.`)
    if (map && (map.shape.length !== 2 || map.shape.some((n) => n !== dModel)))
      throw new ShapeError(`The ${kind} lens has a map of shape [${map.shape.join(', ')}] at '${site}', but this model is ${dModel} wide.`)
  }
}

function mapFeeds({ maps, biases }: LensMaps, sites: readonly SiteInfo[], dModel: number): Record<string, NDArray> {
  const none: NDArray = { dtype: 'float32', shape: [dModel], data: new Float32Array(dModel) }
  return Object.fromEntries(
    sites.flatMap(({ site }) => [
      [mapName(site), maps[site] as NDArray],
      [biasName(site), biases?.[site] ?? none],
    ]),
  )
}

/** What a fitted lens makes of a traced state [… , d_model]. */
export function translated(kind: LensMaps['kind'], value: Tensor, map: Tensor, bias: Tensor): Tensor {
  const moved = add(matmul(value, map, { transB: true }), bias)
  return lensKinds[kind].residual ? add(value, moved) : moved
}

/** A part of the graph again, with another tensor in one place. */
export function throughHead(end: Tensor, value: Tensor, target: Tensor): Tensor {
  return new Rewriter({ tensors: new Map([[end, [{ label: 'of a lens', apply: () => value }]]]) }).map(target)
}

function lensOutputs(
  edited: EditedModel,
  sites: readonly SiteInfo[],
  kind: LensMaps['kind'] | undefined,
  mapped: ReadonlySet<string>,
  wanted: { readonly top: number; readonly tokens: boolean; readonly logits: boolean },
): Record<string, Tensor> {
  const last = `resid_post.${edited.core.spec.layers - 1}`
  const graph = edited.graph({ taps: [last, ...sites.map((s) => s.site)], lastOnly: false })
  const end = graph.taps.get(last) as Tensor
  const own = logSoftmax(graph.logits)
  const outputs: Record<string, Tensor> = {}
  for (const { site } of sites) {
    const value = graph.taps.get(site) as Tensor
    const { dModel } = edited.core.spec
    const read =
      kind && mapped.has(site)
        ? translated(kind, value, input(mapName(site), 'float32', [dModel, dModel]), input(biasName(site), 'float32', [dModel]))
        : value
    const logits = throughHead(end, read, graph.logits)
    const logProbs = logSoftmax(logits)
    const best = topK(logProbs, wanted.top)
    outputs[out('ids', site)] = best.indices
    outputs[out('probs', site)] = exp(best.values)
    outputs[out('entropy', site)] = neg(sum(mul(exp(logProbs), logProbs), [-1]))
    outputs[out('kl', site)] = sum(mul(exp(own), sub(own, logProbs)), [-1])
    if (wanted.tokens) outputs[out('tokens', site)] = exp(gather(logProbs, input('lens.tokens', 'int64', ['token']), 2))
    if (wanted.logits) outputs[out('logits', site)] = logits
  }
  return outputs
}

/** Mean KL(model ‖ lens) over all positions of some texts, in nats, by canonical site: how far a lens is from the model. */
export async function lensDivergence(
  model: Model,
  texts: ModelInput,
  options: Pick<LensOptions, 'sites' | 'maps'> = {},
): Promise<Record<string, number>> {
  const sums = new Map<string, number>()
  let places = 0
  for (const ids of stackableRows(model, texts, 'The text')) {
    const { kl, sites } = await lens(model, { ids }, { ...options, top: 1 })
    for (const [l, site] of sites.entries())
      sums.set(
        site,
        kl.data.subarray(l * ids.length, (l + 1) * ids.length).reduce((a, v) => a + v, sums.get(site) ?? 0),
      )
    places += ids.length
  }
  return Object.fromEntries([...sums].map(([site, sum]) => [site, sum / places]))
}

/** Arrays [1, …] of several sites as one [layer, …]. */
function stack<T extends Float32Array | BigInt64Array>(parts: readonly NDArray<T>[]): NDArray<T> {
  const first = parts[0] as NDArray<T>
  const data = new (first.data.constructor as new (n: number) => T)(first.data.length * parts.length)
  for (const [i, p] of parts.entries()) data.set(p.data as never, i * first.data.length)
  return { dtype: first.dtype, shape: [parts.length, ...first.shape.slice(1)], data }
}
