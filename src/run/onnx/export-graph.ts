/** @file The graph of an exported model: the traced one, edited, with the engine's own inputs computed from those that other runtimes feed. */
import { EditError, ModelError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import type { Architecture, TokenSequence } from '../../models/architecture.ts'
import { attentionOp, cacheName, type TracedModel } from '../../models/traced.ts'
import { sequenceOf } from '../../sites/address.ts'
import type { PreparedEdit } from '../../sites/prepare.ts'
import { rewriteModel } from '../../sites/rewrite.ts'
import {
  type AttentionAttrs,
  add,
  apply,
  cast,
  fromArray,
  greater,
  input,
  type Node,
  rotary,
  scalar,
  sub,
  type Tensor,
  topological,
  unsqueeze,
} from '../../tensor/index.ts'
import type { ModelCore } from '../core.ts'
import { type Prelude, type Preludes, placesOf, preludeOf } from './prelude.ts'

/** What an exported file is asked for. */
export interface ExportShape {
  /** Keys and values of earlier steps go in and come out, longer by this step. */
  readonly cache: boolean
  /** Logits of the last token of each row alone. */
  readonly lastOnly: boolean
}

/** A graph to be written. */
export interface ExportGraph {
  /** By the names that the file gives them, in order. */
  readonly outputs: ReadonlyMap<string, Tensor>
  /** Sites that are tensors of the graph. */
  readonly sites: ReadonlyMap<string, Tensor>
}

/** Hidden keys get a score so low that nothing is left of them, and finite, so that a row of hidden columns has a mean instead of NaN. */
const hiddenScore = -1e30

/**
 * Traces a model for a file.
 * @throws ModelError for a cache in a model that has none; EditError for edits whose numbers the file's inputs do not tell.
 */
export function exportGraph(core: ModelCore, edits: readonly PreparedEdit[], shape: ExportShape): ExportGraph {
  const { architecture } = core
  checkShape(architecture, shape)
  const preludes = preludesOf(architecture, shape)
  const traced = ported(core.trace({ ...shape, explicitPositions: false, slots: false }), core, preludes)
  const logits = architecture.outputs.includes('logits')
  const graph = rewriteModel(traced, {
    edits,
    taps: [...new Set([...architecture.outputs.filter((o) => o !== 'logits'), ...traced.sites.keys()])],
    uses: { logits, caches: shape.cache },
  })
  const constants = editValues(edits, preludes)
  const replace = replacer((node) => (node.op.name === 'input' ? constants.get(node.attrs.name as string) : undefined))
  const outputs = new Map<string, Tensor>()
  for (const name of architecture.outputs) outputs.set(name, replace(name === 'logits' ? graph.logits : (graph.taps.get(name) as Tensor)))
  for (const [l, { keys, values }] of graph.caches.entries()) {
    outputs.set(`present.${l}.key`, replace(keys))
    outputs.set(`present.${l}.value`, replace(values))
  }
  const reached = new Set(topological(outputs.values()))
  const sites = [...graph.taps].map(([site, t]) => [site, replace(t)] as const).filter(([, t]) => reached.has(t.node))
  return { outputs, sites: new Map(sites) }
}

function checkShape({ family, outputs, once, recomputes, writer }: Architecture, { cache, lastOnly }: ExportShape): void {
  if (cache && (once.length > 0 || recomputes || !writer))
    throw new ModelError(
      `A file of '${family}' has no cache of keys and values: ${writer ? 'its steps start from more than those' : 'it writes no text'}; export it without.`,
    )
  if (lastOnly && !outputs.includes('logits')) throw new ModelError(`'${family}' gives out no logits, so there is no last one to keep.`)
}

/** Inputs of each sequence of tokens. A decoder behind an encoder takes no mask, as in transformers' exports: it sees nothing that comes later. */
function preludesOf(a: Architecture, { cache }: ExportShape): Preludes {
  const tokens = a.sequences.filter((s): s is TokenSequence => s.kind === 'tokens')
  return new Map(
    tokens.map((s) => [s.name, preludeOf(s, { masked: s.tensors.mask === 'attention_mask', cache: cache && s.name === 'text' })]),
  )
}

/** Rebuilds what a tensor is computed from, with other values for some nodes. */
function replacer(other: (node: Node, mapped: (t: Tensor) => Tensor) => Tensor | readonly Tensor[] | undefined): (t: Tensor) => Tensor {
  const done = new Map<Tensor, Tensor>()
  const mapped = (t: Tensor) => done.get(t) as Tensor
  return (root) => {
    for (const node of topological([root])) {
      if (done.has(node.outputs[0] as Tensor)) continue
      const instead = other(node, mapped)
      const inputs = node.inputs.map((x) => x && mapped(x))
      const made = instead
        ? [instead].flat()
        : inputs.every((x, i) => x === node.inputs[i])
          ? node.outputs
          : apply(node.op.name, inputs, node.attrs)
      for (const [i, t] of node.outputs.entries()) done.set(t, made[i] as Tensor)
    }
    return mapped(root)
  }
}

/** A traced model over the inputs of the file. */
function ported(traced: TracedModel, core: ModelCore, preludes: Preludes): TracedModel {
  const { architecture, constantFeeds } = core
  const values = new Map<string, Tensor>(Object.entries(constantFeeds).map(([name, array]) => [name, fromArray(array)]))
  for (const p of preludes.values()) for (const [name, t] of p.values) values.set(name, t)
  const lastSlots = new Map<string, Prelude>()
  for (const s of architecture.sequences) if (s.kind === 'tokens') lastSlots.set(s.inputs.lastSlot, preludes.get(s.name) as Prelude)
  const text = preludes.get('text')
  const hidden = text?.mask && unsqueeze(unsqueeze(scoresOf(text.mask), 1), 1)
  const replace = replacer((node, mapped) => {
    const name = node.attrs.name as string
    if (node.op.name === 'input') return values.get(name) ?? pastOf(name, node)
    const asked = askedFilled(node)
    const mask = asked === undefined ? undefined : lastSlots.get(asked)?.mask
    if (mask) return greater(mask, scalar(0, 'int64'))
    return node.op.name === attentionOp ? placed(node, mapped, text as Prelude, hidden) : undefined
  })
  return {
    logits: replace(traced.logits),
    sites: new Map([...traced.sites].map(([site, t]) => [site, replace(t)])),
    inner: new Map([...traced.inner].map(([site, { of, name }]) => [site, { of: replace(of), name }])),
    caches: traced.caches.map(({ keys, values: v }) => ({ keys: replace(keys), values: replace(v) })),
  }
}

const scoresOf = (mask: Tensor) => sub(cast(greater(mask, scalar(0, 'int64')), 'float32'), scalar(1)).mul(-hiddenScore)

/** The name of the input of last slots, where a node asks which slots come up to it: a mask says that without order. */
function askedFilled({ op, inputs }: Node): string | undefined {
  let last = op.name === 'less_equal' ? inputs[1]?.node : undefined
  while (last && ['unsqueeze', 'cast'].includes(last.op.name)) last = last.inputs[0]?.node
  return last?.op.name === 'input' ? (last.attrs.name as string) : undefined
}

/** The cache input of a layer under its name in exports. */
function pastOf(name: string, { outputs: [t] }: Node): Tensor | undefined {
  const found = /^past_(keys|values)\.(\d+)$/.exec(name)
  if (!found || !t) return undefined
  const layer = Number(found[2])
  const part = name === cacheName('keys', layer) ? 'key' : 'value'
  return input(`past_key_values.${layer}.${part}`, t.dtype, t.shape.with(2, 'past'))
}

/** Attention whose positions are not its columns: rotation comes before it, hidden columns get low scores, and a cache grows. */
function placed(node: Node, mapped: (t: Tensor) => Tensor, text: Prelude, hidden: Tensor | undefined): readonly Tensor[] {
  const a = node.attrs as unknown as AttentionAttrs
  const [q, k, v, lastSlot, total, slots, cos, sin, , keys, values, bias] = node.inputs.map((x) => x && mapped(x))
  const turned = (x: Tensor | undefined, heads: number) =>
    x && cos && sin ? rotary(x, text.positions, { cos, sin }, { heads, interleaved: a.interleaved }) : x
  const both = bias && hidden ? add(bias, hidden) : (bias ?? hidden)
  const inputs = [turned(q, a.heads), turned(k, a.kvHeads), v, lastSlot, total, slots, undefined, undefined, undefined, keys, values, both]
  return apply(attentionOp, inputs, { ...a, explicitPositions: false, ...(keys ? { grows: true } : {}) })
}

/** Numbers of edits as constants, and where they act as a value of the inputs. */
function editValues(edits: readonly PreparedEdit[], preludes: Preludes): Map<string, Tensor> {
  const values = new Map<string, Tensor>()
  const constant = (name: string, array: NDArray) => values.set(name, fromArray(array))
  for (const e of edits) {
    const refused = (why: string) => new EditError(`The edit ${e.label} cannot be written into a file, since ${why}; leave it out.`)
    for (const [name, p] of e.params) {
      if (p.seed !== undefined) throw refused('its noise is drawn for each run')
      if (p.positional) throw refused(`its '${name}' has a value for each position of one input`)
      constant(`${e.key}.${name}`, p.array)
    }
    for (const [name, { array }] of Object.entries(e.own?.inputs ?? {})) constant(`${e.key}.${name}`, array)
    if (e.when) {
      constant(`${e.key}.when`, e.when.vector)
      constant(`${e.key}.threshold`, { dtype: 'float32', shape: [], data: Float32Array.of(e.when.threshold) })
    }
    if (!e.masked) continue
    const prelude = preludes.get(sequenceOf(e.info))
    if (!prelude) throw refused("its 'where' is about positions of an image")
    values.set(`${e.key}.mask`, placesOf(e.edit.where ?? {}, prelude, e.label))
  }
  return values
}
