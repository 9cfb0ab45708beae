/** @file PEFT adapters on a model without merging them: as edits, which go on and off and can be trained on, and back. */
import { EditError, listed, ModelError, ShapeError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { type AdapterLayer, type PeftAdapter, peftAdapter } from '../models/peft.ts'
import type { BlockSpec, DecoderSpec, Linear } from '../models/spec.ts'
import type { Edit } from '../sites/edits.ts'
import type { Model } from './model.ts'
import { fixedEdits, lora, type TrainableEdit } from './train-edits.ts'

/** The layer whose output a site is, by the site's name. */
const layerOf: Readonly<Record<string, (b: BlockSpec) => Linear | undefined>> = {
  q: (b) => (b.attention.projection.kind === 'split' ? b.attention.projection.q : undefined),
  k: (b) => (b.attention.projection.kind === 'split' ? b.attention.projection.k : undefined),
  v: (b) => (b.attention.projection.kind === 'split' ? b.attention.projection.v : undefined),
  attn_out: (b) => b.attention.output,
  mlp_pre: ({ mlp }) => (mlp.kind === 'plain' ? mlp.up : mlp.kind === 'gated' && 'gate' in mlp.gate ? mlp.gate.gate : undefined),
  mlp_pre_linear: ({ mlp }) => (mlp.kind === 'gated' && 'gate' in mlp.gate ? mlp.gate.up : undefined),
  mlp_out: ({ mlp }) => (mlp.kind === 'plain' || mlp.kind === 'gated' ? mlp.down : undefined),
}

const moduleOf = ({ weight }: Linear) => weight.replace(/\.weight$/, '')

/** Sites by the module that computes them. */
function sitesByModule(spec: DecoderSpec): Map<string, string> {
  const found = new Map<string, string>()
  for (let l = 0; l < spec.layers; l++)
    for (const [name, layer] of Object.entries(layerOf)) {
      const linear = layer(spec.block(l))
      if (linear && !linear.item) found.set(moduleOf(linear), `${name}.${l}`)
    }
  return found
}

/** An adapter as edits. */
export interface AdapterEdits {
  /** Ready for `model.with(…)`. */
  readonly edits: readonly Edit[]
  /** The same, to be trained on: `trainEdits(model, { edits: trainable, from: parameters, … })`. */
  readonly trainable: readonly TrainableEdit[]
  /** By site and name: `q.1.lora_a` [in, rank], `q.1.lora_b` [rank, out]. */
  readonly parameters: Readonly<Record<string, NDArray<Float32Array>>>
}

/**
 * A PEFT adapter as edits: the weights stay as they are, and other edits and taps work as ever. To merge it instead: `transformOf('merge_lora', { adapter })`.
 * @throws EditError for modules that are not the one layer behind a site (a fused projection, an embedding).
 */
export function adapterEdits(model: Model, { modules }: PeftAdapter): AdapterEdits {
  const sites = sitesByModule(model.spec)
  const without = [...modules.keys()].filter((m) => !sites.has(m))
  if (without.length > 0)
    throw new EditError(
      `The adapter changes modules that are not the one layer behind a site (${listed(without, 4)}), so they cannot be edits; merge it into the weights ('merge_lora').`,
    )
  const trainable: TrainableEdit[] = []
  const parameters: Record<string, NDArray<Float32Array>> = {}
  for (const [module, { a, b, rank, scale }] of modules) {
    const site = sites.get(module) as string
    trainable.push(lora(site, { rank, alpha: scale * rank }))
    parameters[`${site}.lora_a`] = turned(a, rank)
    parameters[`${site}.lora_b`] = turned(b, b.length / rank)
  }
  return { edits: fixedEdits(model, trainable, parameters), trainable, parameters }
}

/**
 * Low-rank edits as an adapter that PEFT reads, from their parameters (those of `trainEdits`).
 * @param options.alpha as it was given to `lora`; the rank by default.
 */
export function adapterOf(
  model: Model,
  parameters: Readonly<Record<string, NDArray>>,
  options: { readonly alpha?: number } = {},
): PeftAdapter {
  const modules = new Map([...sitesByModule(model.spec)].map(([module, site]) => [site, module]))
  const layers = new Map<string, AdapterLayer>()
  let transposed = false
  for (const name of Object.keys(parameters)) {
    const match = /^(.*)\.lora_([ab])$/.exec(name)
    const site = match?.[1] ?? ''
    const module = modules.get(site)
    if (module === undefined)
      throw new ModelError(`'${name}' is no part of a low-rank adapter of a layer of this model, which is all that PEFT holds.`)
    if (match?.[2] === 'b') continue
    const [a, b] = [parameters[name] as NDArray<Float32Array>, parameters[`${site}.lora_b`] as NDArray<Float32Array> | undefined]
    const rank = a.shape[1] as number
    if (b?.shape[0] !== rank) throw new ShapeError(`'${site}.lora_b' is missing or of another rank than '${name}'.`)
    const scale = (options.alpha ?? rank) / rank
    layers.set(module, { rank, scale, a: turned(a.data, a.shape[0] as number).data, b: turned(b.data, rank).data })
    const [kind = '', l] = site.split('.')
    transposed ||= layerOf[kind]?.(model.spec.block(Number(l)))?.layout === 'in,out'
  }
  return peftAdapter(layers, { fanInFanOut: transposed })
}

/** [rows, columns] as [columns, rows]; thin matrices only. */
function turned(x: Float32Array, rows: number): NDArray<Float32Array> {
  const columns = x.length / rows
  const data = new Float32Array(x.length)
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) data[c * rows + r] = x[r * columns + c] as number
  return { dtype: 'float32', shape: [columns, rows], data }
}
