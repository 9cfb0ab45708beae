/** @file Layers and heads kept or taken out. */
import { ModelError, UsageError } from '../../base/errors.ts'
import type { Config } from '../config.ts'
import type { DecoderSpec } from '../spec.ts'
import { axisOf, type Draft } from './draft.ts'
import { kind } from './kind.ts'
import { takenColumns, takenRows } from './matrix.ts'
import { blocksOf } from './parts.ts'

/** Fields of configs that count layers. */
const layerCounts = ['num_hidden_layers', 'n_layer', 'n_layers', 'num_layers']

/** The indices asked for, in order; refuses repeated ones and those that are not there. */
function checkedIndices(what: string, indices: readonly number[], count: number): void {
  if (!Array.isArray(indices) || indices.length === 0) throw new UsageError(`Name at least one of the ${what}s to keep.`)
  const bad = indices.find((i, at) => !Number.isInteger(i) || i < 0 || i >= count || indices.indexOf(i) !== at)
  if (bad !== undefined) throw new UsageError(`${what} ${bad} is named twice or is none of 0 to ${count - 1}.`)
}

/** A block as data that does not say where it stands. */
const placeless = (spec: DecoderSpec, layer: number) =>
  JSON.stringify(spec.block(layer)).replaceAll(`${spec.modules.blocks}.${layer}.`, `${spec.modules.blocks}.#.`)

/** The config with another list of layers; lists that have an entry for each layer keep those of the kept ones. */
function slicedConfig(config: Config, spec: DecoderSpec, layers: readonly number[]): Config {
  const changed: Record<string, unknown> = { ...config }
  for (const [key, value] of Object.entries(config)) {
    if (layerCounts.includes(key)) changed[key] = layers.length
    else if (Array.isArray(value) && value.length === spec.layers && key !== 'eos_token_id') changed[key] = layers.map((l) => value[l])
  }
  // GPT-Neo says its layers in patterns and their repetitions.
  if (Array.isArray(config.attention_types)) {
    const flat = (config.attention_types as [string[], number][]).flatMap(([pattern, times]) =>
      Array.from({ length: times }, () => pattern).flat(),
    )
    changed.attention_types = layers.map((l) => [[flat[l]], 1])
  }
  return changed
}

export const keepLayers = kind<{ readonly layers: readonly number[] }>({
  doc: 'Some layers are kept, in the given order; the others are gone.',
  keeps: 'nothing',
  params: ['layers'],
  apply(draft, { layers }) {
    const { spec, config } = draft
    checkedIndices('layer', layers, spec.layers)
    const sliced = slicedConfig(config, spec, layers)
    const after = draft.specOf(sliced)
    const moved = layers.findIndex((l, i) => placeless(after, i) !== placeless(spec, l))
    if (after.layers !== layers.length || moved >= 0)
      throw new ModelError(
        `Layer ${layers[Math.max(moved, 0)]} of the family '${spec.family}' would be another one at place ${Math.max(moved, 0)}, since the family tells layers apart by their place; keep layers that do not move, or move by whole periods.`,
      )
    const path = spec.modules.blocks
    const last = path.split('.').at(-1) as string
    const pattern = new RegExp(`^((?:.*\\.)?${last.replaceAll('.', '\\.')}\\.)(\\d+)(\\..*)$`)
    const place = new Map(layers.map((l, i) => [l, i]))
    draft.rename((name) => {
      const match = pattern.exec(name)
      if (!match) return name
      const to = place.get(Number(match[2]))
      return to === undefined ? undefined : `${match[1]}${to}${match[3]}`
    })
    draft.configure(sliced)
    return {}
  },
})

/** All coordinates of some heads. */
const coordinates = (heads: readonly number[], width: number) =>
  heads.flatMap((h) => Array.from({ length: width }, (_, i) => h * width + i))

export const keepHeads = kind<{ readonly heads: readonly number[] }>({
  doc: 'Some query heads are kept in every layer, with the key-value heads that they read; the matrices become smaller.',
  keeps: 'nothing',
  params: ['heads'],
  async apply(draft, { heads }) {
    const { spec } = draft
    checkedIndices('head', heads, spec.heads)
    const group = spec.heads / spec.kvHeads
    const kv = [...new Set(heads.map((h) => Math.floor(h / group)))]
    if (heads.length !== kv.length * group || heads.some((h, i) => Math.floor(h / group) !== kv[Math.floor(i / group)]))
      throw new ModelError(
        `${group} query heads share each key-value head here: keep or leave out whole groups (heads 0 to ${group - 1}, ${group} to ${2 * group - 1}, …), each together.`,
      )
    for (const { attention: a } of blocksOf(spec)) {
      if (a.projection.kind !== 'split' || (a.qNorm && a.qNorm.over !== 'head'))
        throw new ModelError(
          `The family '${spec.family}' has its heads in one matrix or under one norm, so that none can be cut out; use 'ablate_heads', which makes them write nothing.`,
        )
      const { q, k, v } = a.projection
      for (const [l, kept] of [
        [q, heads],
        [k, kv],
        [v, kv],
      ] as const) {
        const at = coordinates(kept, spec.headDim)
        resize(draft, l, 'out', at)
        if (l.bias === undefined) continue
        const bias = await draft.vector(l.bias)
        draft.putVector(
          l.bias,
          Float32Array.from(at, (i) => bias[i] as number),
        )
      }
      resize(draft, a.output, 'in', coordinates(heads, spec.headDim))
    }
    const { config } = draft
    const heading = ['num_attention_heads', 'n_head', 'n_heads', 'num_heads'].find((k) => config[k] !== undefined) as string
    const kvSaid = config.num_key_value_heads !== undefined
    draft.configure({ [heading]: heads.length, head_dim: spec.headDim, ...(kvSaid ? { num_key_value_heads: kv.length } : {}) })
    const after = draft.spec
    if (after.heads !== heads.length || after.kvHeads !== kv.length || after.headDim !== spec.headDim)
      throw new ModelError(
        `The config of the family '${spec.family}' cannot say that there are fewer heads of the same width; use 'ablate_heads', which makes them write nothing.`,
      )
    return {}
  },
})

function resize(draft: Draft, l: Parameters<Draft['change']>[0], side: 'in' | 'out', at: readonly number[]): void {
  const axis = axisOf(l, side)
  const [rows, columns] = draft.shape(l.weight) as [number, number]
  const m = draft.matrix(l.weight)
  draft.put(l.weight, axis === 'rows' ? [at.length, columns] : [rows, at.length], axis === 'rows' ? takenRows(m, at) : takenColumns(m, at))
}

export const ablateHeads = kind<{ readonly heads: readonly (readonly [layer: number, head: number])[] }>({
  doc: 'Some heads [layer, head] write nothing: what the output projection reads of them is multiplied by zero.',
  keeps: 'nothing',
  params: ['heads'],
  apply(draft, { heads }) {
    const { spec } = draft
    for (const [layer, head] of heads)
      if (!(layer >= 0 && layer < spec.layers && head >= 0 && head < spec.heads && Number.isInteger(layer) && Number.isInteger(head)))
        throw new UsageError(`There is no head ${head} in layer ${layer}: the model has ${spec.layers} layers of ${spec.heads} heads.`)
    for (const layer of new Set(heads.map(([l]) => l))) {
      const factors = new Float32Array(spec.heads * spec.headDim).fill(1)
      for (const [l, h] of heads) if (l === layer) factors.fill(0, h * spec.headDim, (h + 1) * spec.headDim)
      draft.scale(spec.block(layer).attention.output, 'in', factors)
    }
    return {}
  },
})
