/** @file The residual stream taken apart: sums along the layers, its components, the heads, and what each adds to a logit directly. */
import { ModelError, ShapeError, UsageError } from '../base/errors.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import { hasMlp, type Linear, type Norm } from '../models/spec.ts'
import type { ModelCore } from '../run/core.ts'
import type { Model, ModelInput } from '../run/index.ts'
import {
  add,
  div,
  gather,
  input,
  matmul,
  mean,
  mul,
  reshape,
  slice,
  sqrt,
  squeeze,
  sub,
  sum,
  type Tensor,
  transpose,
  unsqueeze,
} from '../tensor/index.ts'
import { type EditedModel, editedModel, int64, rowFeeds, stackableRows } from './patch-graph.ts'

/** Parts of the residual stream, or points along it. */
export type StreamParts =
  /** `embed`, `pos_embed`, `0_attn_out`, `0_mlp_out` …: they add up to the last residual stream. */
  | 'components'
  /** `0_pre`, `0_mid`, … `final_post`: the stream as it has grown so far. */
  | 'accumulated'
  /** `L0H0` …: what each head writes, without the bias of the output projection. */
  | 'heads'

/** How parts are scaled: not at all, by the final norm's divisor at that place, or by a divisor of their own. */
export type StreamNorm = 'none' | 'frozen' | 'own'

/** Parts of the residual stream of some texts. */
export interface StreamDecomposition {
  readonly labels: readonly string[]
  /** [part, batch, pos, d_model] */
  readonly values: NDArray<Float32Array>
}

/**
 * Takes the residual stream apart.
 * @param options.norm `frozen` divides every part by the scale that the final norm has at its place (for LayerNorm after subtracting the
 * part's own mean), so that parts still add up; `own` normalises each point by itself. Gain and bias of the norm are left out.
 */
export async function decomposeStream(
  model: Model,
  texts: ModelInput,
  options: { readonly parts?: StreamParts; readonly norm?: StreamNorm } = {},
): Promise<StreamDecomposition> {
  const { parts: kind = 'components', norm = 'none' } = options
  const edited = editedModel(model)
  const rows = evenRows(model, texts)
  const program = await edited.core.compiled(JSON.stringify(['stream', edited.structure, kind, norm]), () => {
    const { parts, scale } = partsOf(edited, kind)
    return Object.fromEntries([...parts].map(([label, t]) => [label, normalised(t, norm, model.spec.finalNorm, scale)]))
  })
  const out = (await program.run(rowFeeds(edited, rows))) as Record<string, NDArray<Float32Array>>
  // A block's heads come as one array [batch, head, pos, d_model].
  return kind === 'heads' ? headParts(out) : stacked(Object.entries(out))
}

/** Options of {@link attributeLogits}. */
export interface LogitAttributionOptions {
  /** Token whose logit is explained. */
  readonly answer: number
  /** Token whose logit is subtracted. */
  readonly wrong?: number
  readonly by?: 'components' | 'heads'
}

/** Direct contributions to a logit or a difference of two. */
export interface LogitAttribution {
  readonly labels: readonly string[]
  /** [part, batch, pos]: contribution at each position, by the final norm's own scale there. */
  readonly values: NDArray<Float32Array>
  /** What the biases of norm and unembedding add everywhere; components and this add up to the metric. */
  readonly bias: number
  /** The logit or difference itself, [batch, pos]; before a soft-cap, where the model has one. */
  readonly metric: NDArray<Float32Array>
  /** The final norm is treated as frozen: its divisor is that of the whole stream, its gain belongs to the unembedding. */
  readonly norm: 'frozen'
}

/**
 * Direct logit attribution: each part of the last residual stream, divided by the final norm's scale at that place, along the
 * direction of the answer (less the wrong token) in the unembedding with the norm's gain folded in.
 */
export async function attributeLogits(model: Model, texts: ModelInput, options: LogitAttributionOptions): Promise<LogitAttribution> {
  const { by = 'components', answer, wrong } = options
  const { vocab } = model.spec
  for (const id of [answer, ...(wrong === undefined ? [] : [wrong])])
    if (!Number.isInteger(id) || id < 0 || id >= vocab)
      throw new UsageError(`There is no token ${id} to explain; the vocabulary has ids 0 to ${vocab - 1}.`)
  const edited = editedModel(model)
  const rows = evenRows(model, texts)
  const key = JSON.stringify(['logit attribution', edited.structure, by])
  const program = await edited.core.compiled(key, () => attributionOutputs(edited, by))
  const feeds = {
    ...rowFeeds(edited, rows),
    tokens: int64([answer, wrong ?? answer]),
    signs: { dtype: 'float32', shape: [2], data: Float32Array.of(1, wrong === undefined ? 0 : -1) } satisfies NDArray,
  }
  const { bias, metric, ...parts } = (await program.run(feeds)) as Record<string, NDArray<Float32Array>>
  const { labels, values } = by === 'heads' ? headParts(parts) : stacked(Object.entries(parts))
  return { labels, values, bias: bias?.data[0] as number, metric: metric as NDArray<Float32Array>, norm: 'frozen' }
}

function attributionOutputs(edited: EditedModel, by: 'components' | 'heads'): Record<string, Tensor> {
  const { core } = edited
  const { finalNorm } = core.spec
  const { parts, scale, read } = partsOf(edited, by)
  const { direction, bias } = unembedding(core)
  const folded = finalNorm?.weight ? mul(direction, gainOf(core, finalNorm)) : direction
  // Subtracting a part's mean from it is subtracting the direction's mean from the direction.
  const along = finalNorm?.kind === 'layer' ? sub(folded, mean(folded, [-1], true)) : folded
  const outputs: Record<string, Tensor> = {}
  for (const [label, part] of parts) {
    const value = sum(mul(part, along), [-1])
    outputs[label] = scale ? div(value, squeeze(by === 'heads' ? unsqueeze(scale, 1) : scale, -1)) : value
  }
  const normBias = finalNorm?.bias ? sum(mul(weightOf(core, finalNorm.bias), direction)) : undefined
  outputs.bias = normBias ? add(bias, normBias) : bias
  outputs.metric = add(sum(mul(read, direction), [-1]), bias)
  return outputs
}

/** The direction of the signed tokens in what the unembedding reads, [d_model], and what its bias adds. */
function unembedding(core: ModelCore): { direction: Tensor; bias: Tensor } {
  const { head, narrow, logitScale = 1 } = core.spec
  const [tokens, signs] = [input('tokens', 'int64', [2]), input('signs', 'float32', [2])]
  const matrix = matrixOf(core, head)
  const columns = head.layout === 'out,in' ? gather(matrix, tokens, 0) : transpose(gather(matrix, tokens, 1), [1, 0])
  const row = matmul(unsqueeze(signs, 0), columns)
  const wide = narrow ? matmul(row, matrixOf(core, narrow.out), { transB: narrow.out.layout === 'in,out' }) : row
  const own = head.bias ? sum(mul(gather(weightOf(core, head.bias), tokens, 0), signs)) : mul(sum(signs), 0)
  const bias = narrow?.out.bias ? add(own, sum(mul(squeeze(row, 0), weightOf(core, narrow.out.bias)))) : own
  return { direction: mul(squeeze(wide, 0), logitScale), bias: mul(bias, logitScale) }
}

/** A parameter that the model reads. */
export function weightOf(core: ModelCore, name: string): Tensor {
  const found = core.parameter(name)
  if (!found) throw new ModelError(`The model reads no parameter '${name}', so its part in the logits is not known.`)
  return found
}

/** The stored matrix of a linear layer. */
export function matrixOf(core: ModelCore, l: Linear): Tensor {
  const stored = weightOf(core, l.weight)
  return l.item ? squeeze(slice(stored, 0, l.item.at, l.item.at + 1), 0) : stored
}

/** The gain of a norm, [d_model]. */
export function gainOf(core: ModelCore, norm: Norm): Tensor {
  const stored = weightOf(core, norm.weight as string)
  return norm.plusOne ? add(stored, 1) : stored
}

/** Parts of the stream, traced. */
export interface Parts {
  /** [batch, pos, d_model]; heads [batch, head, pos, d_model]. */
  readonly parts: ReadonlyMap<string, Tensor>
  /** Divisor of the final norm, [batch, pos, 1]; undefined without one. */
  readonly scale: Tensor | undefined
  /** What the unembedding reads. */
  readonly read: Tensor
}

/** The parts of the stream of a graph. */
export function partsOf(edited: EditedModel, kind: StreamParts): Parts {
  const { spec } = edited.core
  const layers = Array.from({ length: spec.layers }, (_, l) => l)
  if (kind !== 'accumulated' && layers.some((l) => spec.block(l).attnSumNorm || spec.block(l).mlpSumNorm))
    throw new ModelError(
      `The family '${spec.family}' normalises the residual stream itself after each sum, so its parts do not add up; read the stream with 'accumulated'.`,
    )
  const sites = siteTable[kind](edited)
  const end = spec.finalNorm ? 'final_norm' : `resid_post.${spec.layers - 1}`
  const scaled = spec.finalNorm ? ['final_norm_scale'] : []
  const inside = kind === 'heads' ? layers.filter((l) => spec.block(l).attnPostNorm).map((l) => `attn_out_post_scale.${l}`) : []
  const graph = edited.graph({ taps: [...sites.map(([, s]) => s), ...scaled, ...inside, end], lastOnly: false })
  const tap = (site: string) => graph.taps.get(site) as Tensor
  const parts = new Map(sites.map(([label, site], i) => [label, kind === 'heads' ? headWrite(edited.core, i, tap(site), tap) : tap(site)]))
  return { parts, scale: spec.finalNorm ? tap('final_norm_scale') : undefined, read: tap(end) }
}

/** Labels and sites of each kind of parts, in the order of the forward pass. */
const siteTable: Readonly<Record<StreamParts, (edited: EditedModel) => (readonly [label: string, site: string])[]>> = {
  components: ({ core: { spec } }) => [
    // A norm after the embeddings makes one part of their sum.
    ...(spec.embeddingNorm
      ? ([['embed', 'resid_pre.0']] as const)
      : ([['embed', 'embeddings'], ...(spec.positions.kind === 'learned' ? [['pos_embed', 'pos_embeddings'] as const] : [])] as const)),
    ...layersOf(spec.layers).flatMap((l) => [
      [`${l}_attn_out`, `attn_out_post.${l}`] as const,
      ...(hasMlp(spec, l) ? [[`${l}_mlp_out`, `mlp_out_post.${l}`] as const] : []),
    ]),
  ],
  accumulated: ({ core: { spec } }) => [
    ...layersOf(spec.layers).flatMap((l) => [
      [`${l}_pre`, `resid_pre.${l}`] as const,
      ...(spec.block(l).residual === 'parallel' || !hasMlp(spec, l) ? [] : [[`${l}_mid`, `resid_mid.${l}`] as const]),
    ]),
    ['final_post', `resid_post.${spec.layers - 1}`],
  ],
  heads: ({ core: { spec } }) => layersOf(spec.layers).map((l) => [`L${l}`, `z.${l}`] as const),
}

const layersOf = (n: number) => Array.from({ length: n }, (_, l) => l)

/** What each head of a block adds to the stream, [batch, head, pos, d_model]; a norm after attention counts as frozen. */
export function headWrite(core: ModelCore, layer: number, z: Tensor, tap: (site: string) => Tensor): Tensor {
  const { heads, headDim, dModel } = core.spec
  const b = core.spec.block(layer)
  const { output } = b.attention
  const stored = matrixOf(core, output)
  const matrix = reshape(output.layout === 'out,in' ? transpose(stored, [1, 0]) : stored, [heads, headDim, dModel])
  let write = matmul(transpose(z, [0, 2, 1, 3]), matrix)
  const norm = b.attnPostNorm
  if (norm) {
    write = div(norm.kind === 'layer' ? sub(write, mean(write, [-1], true)) : write, unsqueeze(tap(`attn_out_post_scale.${layer}`), 1))
    if (norm.weight) write = mul(write, gainOf(core, norm))
  }
  return b.multiplier ? mul(write, b.multiplier) : write
}

/** A part divided by the final norm's divisor, or by its own. */
export function normalised(part: Tensor, how: StreamNorm, norm: Norm | undefined, scale: Tensor | undefined): Tensor {
  if (how === 'none' || !norm || !scale) return part
  const centred = norm.kind === 'layer' ? sub(part, mean(part, [-1], true)) : part
  if (how === 'frozen') return div(centred, part.rank === 4 ? unsqueeze(scale, 1) : scale)
  return div(centred, sqrt(add(mean(mul(centred, centred), [-1], true), norm.eps)))
}

/** Texts of one length. */
function evenRows(model: Model, texts: ModelInput): readonly (readonly number[])[] {
  const rows = stackableRows(model, texts, 'The input')
  const length = (rows[0] as readonly number[]).length
  const other = rows.find((r) => r.length !== length)
  if (other) throw new ShapeError(`The texts have ${length} and ${other.length} tokens; give texts of one length, or one at a time.`)
  return rows
}

function stacked(parts: readonly (readonly [string, NDArray<Float32Array>])[]): { labels: string[]; values: NDArray<Float32Array> } {
  const [, first] = parts[0] as readonly [string, NDArray<Float32Array>]
  const data = new Float32Array(parts.length * first.data.length)
  for (const [i, [, part]] of parts.entries()) data.set(part.data, i * first.data.length)
  return { labels: parts.map(([label]) => label), values: { dtype: 'float32', shape: [parts.length, ...first.shape], data } }
}

/** Arrays [batch, head, …] of each layer as one part for each head. */
function headParts(layers: Readonly<Record<string, NDArray<Float32Array>>>) {
  return stacked(
    Object.entries(layers).flatMap(([label, { shape, data }]) => {
      const [batch, heads, ...rest] = shape as [number, number, ...number[]]
      const size = sizeOf(rest)
      return Array.from({ length: heads }, (_, h) => {
        const own = new Float32Array(batch * size)
        for (let b = 0; b < batch; b++) own.set(data.subarray((b * heads + h) * size, (b * heads + h + 1) * size), b * size)
        return [`${label}H${h}`, { dtype: 'float32', shape: [batch, ...rest], data: own }] as const
      })
    }),
  )
}
