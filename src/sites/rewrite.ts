/** @file From a traced model, edits and taps to the graph that is compiled. */
import { EditError, SiteError } from '../base/errors.ts'
import { attentionOp, type TracedModel } from '../models/traced.ts'
import {
  and,
  cast,
  cut,
  type Dim,
  greater,
  input,
  less,
  mul,
  Rewriter,
  type Shape,
  squeeze,
  sum,
  type Tensor,
  type TensorRule,
  topological,
  unsqueeze,
  where,
} from '../tensor/index.ts'
import { positionAxis } from './address.ts'
import type { EditOpRow } from './edit-ops.ts'
import { type DataEdit, opRow } from './edits.ts'
import { changesNothing, neverFires, type PreparedEdit } from './prepare.ts'
import type { SiteRow } from './vocabulary.ts'

/** A rewritten model: what it computes, by name. */
export interface EditedGraph {
  readonly logits: Tensor
  readonly caches: TracedModel['caches']
  /** Values of the tapped sites, after all edits there. */
  readonly taps: ReadonlyMap<string, Tensor>
  /** Number of positions at which an edit with a probe's condition fired, by edit key. */
  readonly fired: ReadonlyMap<string, Tensor>
}

/** What a rewrite is asked for. */
export interface RewriteRequest {
  readonly edits: readonly PreparedEdit[]
  /** Canonical sites to read. */
  readonly taps: readonly string[]
  /** Canonical sites at which the run begins: their values are fed under {@link startName}, and what comes before is not computed. */
  readonly start?: readonly string[] | undefined
  /** Write out all attention, since positions are not the slots. */
  readonly expandAttention?: boolean
  /** What the caller will use; an edit on which none of it depends can never fire. */
  readonly uses: { readonly logits: boolean; readonly caches: boolean }
}

/** Name of the input that holds the value of the site at which a run begins. */
export const startName = (site: string) => `start:${site}`

/** Applies edits to a traced model. Taps see the value after the edits at their site; edits at one site act in order. */
export function rewriteModel(traced: TracedModel, request: RewriteRequest): EditedGraph {
  const { model, sites } = expandInner(traced, request)
  const siteOf = (site: string) => {
    const t = sites.get(site)
    if (!t) throw new SiteError(`The site '${site}' is not part of this graph.`)
    return t
  }
  const fired = new Map<string, Tensor>()
  const rules = new Map<Tensor, TensorRule[]>()
  const begin = (request.start ?? []).map((site) => ({ site, value: siteOf(site) }))
  for (const { site, value } of begin) rules.set(value, [{ label: `start at ${site}`, apply: () => startTensor(site, value) }])
  for (const e of request.edits) {
    const target = siteOf(e.info.site)
    const list = rules.get(target) ?? []
    list.push(ruleOf(e, target, siteOf, fired))
    rules.set(target, list)
  }
  checkReach(
    request,
    model,
    siteOf,
    begin.map((b) => b.value),
  )
  const rewriter = new Rewriter({ tensors: rules })
  const taps = new Map(request.taps.map((site) => [site, rewriter.map(siteOf(site))]))
  const logits = rewriter.map(model.logits)
  const caches = model.caches.map((c) => ({ keys: rewriter.map(c.keys), values: rewriter.map(c.values) }))
  if (begin.length > 0) checkStart(request.start ?? [], new Map([...taps, ...(request.uses.logits ? [['logits', logits] as const] : [])]))
  return { logits, caches, taps, fired }
}

/** The input that stands for a site's value, in the segment of that value. */
function startTensor(site: string, value: Tensor): Tensor {
  const segments = topological([value]).flatMap(({ op, attrs }) => (op.name === 'cut' ? [attrs.index as number] : []))
  const fed = input(startName(site), value.dtype, value.shape)
  return segments.length > 0 ? cut(fed, Math.max(...segments)) : fed
}

/** Refuses to compute from a start what does not depend on it. */
function checkStart(start: readonly string[], asked: ReadonlyMap<string, Tensor>): void {
  const names = new Set<unknown>(start.map(startName))
  for (const [site, t] of asked) {
    const reads = topological([t]).some(({ op, attrs }) => op.name === 'input' && names.has(attrs.name))
    // Where a run starts at several sites, each may serve a part of it.
    if (!reads && start.length === 1)
      throw new EditError(
        `'${site}' does not depend on '${start[0]}', where the run starts; ask for a site that comes later, or start earlier.`,
      )
  }
}

/** Writes out the composites in which a wanted site hides. */
function expandInner(
  traced: TracedModel,
  request: RewriteRequest,
): { model: Pick<TracedModel, 'logits' | 'caches'>; sites: ReadonlyMap<string, Tensor> } {
  const wanted = new Set([
    ...request.taps,
    ...(request.start ?? []),
    ...request.edits.flatMap((e) => [e.info.site, ...(e.when ? [e.when.info.site] : []), ...e.reads.map((r) => r.site)]),
  ])
  const hidden = [...wanted].filter((site) => !traced.sites.has(site) && traced.inner.has(site))
  if (hidden.length === 0 && !request.expandAttention) return { model: traced, sites: traced.sites }
  const nodes = new Set(hidden.map((site) => (traced.inner.get(site) as { of: Tensor }).of.node))
  const rewriter = new Rewriter({ expand: (node) => nodes.has(node) || (request.expandAttention === true && node.op.name === attentionOp) })
  const sites = new Map<string, Tensor>()
  for (const [site, t] of traced.sites) sites.set(site, rewriter.map(t))
  const model = {
    logits: rewriter.map(traced.logits),
    caches: traced.caches.map((c) => ({ keys: rewriter.map(c.keys), values: rewriter.map(c.values) })),
  }
  for (const site of hidden) {
    const { of, name } = traced.inner.get(site) as { of: Tensor; name: string }
    const value = rewriter.expansions.get(of.node)?.inner?.[name]
    if (value) sites.set(site, value)
  }
  return { model, sites }
}

function checkReach(
  request: RewriteRequest,
  model: Pick<TracedModel, 'logits' | 'caches'>,
  siteOf: (site: string) => Tensor,
  begin: readonly Tensor[],
): void {
  if (request.edits.length === 0) return
  const roots = request.taps.map(siteOf)
  if (request.uses.logits) roots.push(model.logits)
  if (request.uses.caches) for (const c of model.caches) roots.push(c.keys, c.values)
  // What comes before a start is not computed.
  const ends = new Set(begin.map((t) => t.node))
  const reached = new Set(topological(roots, ends))
  const missed = request.edits.find((e) => !reached.has(siteOf(e.info.site).node))
  if (!missed) return
  const whole = new Set(topological([model.logits], ends))
  throw whole.has(siteOf(missed.info.site).node) ? changesNothing(missed, request.taps) : neverFires(missed)
}

function ruleOf(e: PreparedEdit, target: Tensor, siteOf: (site: string) => Tensor, fired: Map<string, Tensor>): TensorRule {
  const { edit, when, key, info } = e
  const own = (t: Tensor) => t === target
  const readTargets = [...(when ? [siteOf(when.info.site)] : []), ...e.reads.map((r) => siteOf(r.site))]
  return {
    label: e.label,
    reads: readTargets.filter((t) => !own(t)),
    apply: (value, mapped) => {
      const others = [...mapped]
      const read = readTargets.map((t) => (own(t) ? value : (others.shift() as Tensor)))
      const edited =
        edit.op === 'function'
          ? edit.apply(value, {
              site: info.site,
              ...(info.layer === undefined ? {} : { layer: info.layer }),
              read: (site) => {
                const i = e.reads.findIndex((r) => r.site === site || r.aliases.includes(site))
                if (i < 0) throw new EditError(`The edit ${e.label} reads '${site}' without saying so; name it in 'reads'.`)
                return read[i + (when ? 1 : 0)] as Tensor
              },
            })
          : applyData(edit, e, value)
      if (!e.masked) return edited
      let mask = input(`${key}.mask`, 'bool', [value.shape[0] as Dim, value.shape[positionAxis(info.row)] as Dim])
      if (when) {
        const along = squeeze(sum(mul(read[0] as Tensor, input(`${key}.when`, 'float32', when.vector.shape)), [-1], true), 2)
        const threshold = input(`${key}.threshold`, 'float32', [])
        mask = and(mask, when.above ? greater(along, threshold) : less(along, threshold))
        fired.set(key, sum(cast(mask, 'float32')))
      }
      return where(alongSite(mask, info.row), edited, value)
    },
  }
}

function applyData(edit: DataEdit, e: PreparedEdit, value: Tensor): Tensor {
  if (!e.own) return (opRow(edit.op).apply as NonNullable<EditOpRow['apply']>)(value, paramInputs(e, value))
  const inputs = Object.entries(e.own.inputs).map(([name, { array, shape }]) => [
    name,
    // Two edits of one kind may change different numbers of latents, so their symbols are their own.
    input(
      `${e.key}.${name}`,
      array.dtype,
      shape.map((d) => (typeof d === 'string' ? `${e.key}.${d}` : d)),
    ),
  ])
  return e.own.apply(value, Object.fromEntries(inputs) as Record<string, Tensor>)
}

function paramInputs(e: PreparedEdit, value: Tensor): Record<string, Tensor> {
  const out: Record<string, Tensor> = {}
  for (const [name, p] of e.params) {
    // Positional parameters are laid out in full at each step; others keep their own axes.
    const shape: Shape = p.schedule
      ? value.shape.map((d, i) => (i < 2 ? d : 1))
      : p.positional
        ? value.shape
        : p.array.shape.map((n, i) => (n === 1 ? 1 : (value.shape[value.rank - p.array.shape.length + i] as number)))
    out[name] = input(`${e.key}.${name}`, 'float32', shape)
  }
  return out
}

/** A mask [batch, pos] with axes of length 1 where the site has others. */
function alongSite(mask: Tensor, row: SiteRow): Tensor {
  const { axes } = row
  const pos = positionAxis(row)
  let out = mask
  for (let i = 1; i < pos; i++) out = unsqueeze(out, i)
  for (let i = pos + 1; i < axes.length; i++) out = unsqueeze(out, i)
  return out
}
