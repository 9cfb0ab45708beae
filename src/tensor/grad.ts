/** @file Reverse mode by graph rewriting: the gradient of a graph is a graph. Rules are rows of the op table; here is only the order in which they are asked. */
import { EditError, ShapeError, UsageError } from '../base/errors.ts'
import { combine } from './grad-sum.ts'
import { Rewriter, topological } from './graph.ts'
import { cut, identity } from './ops/index.ts'
import { expandTo, isFloat, zerosLike } from './ops/like.ts'
import { sameShape } from './shape.ts'
import { apply, type Node, scalar, shown, type Tensor } from './tensor.ts'

/** What to differentiate. */
export interface DifferentiateOptions {
  /** A scalar; any shape when a seed is given. */
  readonly of: Tensor
  /** Tensors that `of` depends on. */
  readonly at: readonly Tensor[]
  /** Gradient of `of` itself, of its shape; 1 by default. */
  readonly seed?: Tensor
  /** Whether the backward pass of each segment becomes a segment, where the graph carries `cut` marks. */
  readonly cut?: boolean
  /**
   * Segments whose values are not kept for the backward pass but computed again in it, from what entered the segment; needs `cut`. The last segment is
   * followed backward at once, so that nothing of it is kept in either case.
   */
  readonly recompute?: (segment: number) => boolean
}

/** A differentiated graph. */
export interface Differentiated {
  /** The counterpart of `of`, from which the gradients are computed: fetch this one beside them, so that nothing is computed twice. */
  readonly of: Tensor
  /** The gradients, in the order of `at`, each of its tensor's shape. */
  readonly grads: readonly Tensor[]
  /** The counterpart of any tensor of the old graph in the new one: composites without a gradient rule are written out there. */
  map(t: Tensor): Tensor
  /** Forward values that wait for the backward pass, by the segment whose backward pass reads them; empty without `cut`. */
  readonly saved: ReadonlyMap<number, ReadonlySet<Tensor>>
}

/** Gradients of a scalar with respect to tensors; see {@link differentiate} for fetching the scalar and others along with them. */
export function gradients(of: Tensor, at: readonly Tensor[], options: { seed?: Tensor; cut?: boolean } = {}): Tensor[] {
  return [...differentiate({ of, at, ...options }).grads]
}

/** Vector-Jacobian product: gradients of the sum of `of · vector`, for an `of` of any shape. */
export function vjp(of: Tensor, at: readonly Tensor[], vector: Tensor): Tensor[] {
  return gradients(of, at, { seed: vector })
}

/**
 * Extends a graph by the gradients of one tensor. A missing rule, or an `at` that `of` does not depend on, is refused here,
 * before anything is compiled.
 */
export function differentiate(options: DifferentiateOptions): Differentiated {
  checkTarget(options)
  for (const t of options.at)
    if (!isFloat(t.dtype)) throw new UsageError(`A gradient needs floating-point values, but ${nameOf(t)} is ${t.dtype}.`)
  let { of, at } = options as { of: Tensor; at: readonly Tensor[] }
  const rewriters: Rewriter[] = []
  // Expansions may hold composites without a rule themselves.
  for (;;) {
    const path = new Path(of, at)
    if (rewriters.length === 0) path.check()
    const composites = path.nodes.filter((n) => !n.op.gradient)
    if (composites.length === 0) return { of, ...sweep(path, options), map: (t) => rewriters.reduce((x, r) => r.map(x), t) }
    for (const { op } of composites)
      if (!op.expand)
        throw new UsageError(
          `The op '${op.name}' has no gradient rule, so nothing can be differentiated through it; put stopGradient before it, or write it in ops that have one.`,
        )
    const open = new Set(composites)
    const rewriter = new Rewriter({ expand: (n) => open.has(n) })
    rewriters.push(rewriter)
    of = rewriter.map(of)
    at = at.map((t) => rewriter.map(t))
  }
}

function checkTarget({ of, seed }: DifferentiateOptions): void {
  if (!isFloat(of.dtype)) throw new UsageError(`Only floating-point values have gradients, but the value to differentiate is ${of.dtype}.`)
  if (!seed && of.shape.some((d) => d !== 1))
    throw new ShapeError(
      `Only a scalar has a gradient, but the value to differentiate has shape ${shown(of.shape)}; sum it, or give a seed.`,
    )
  if (seed && (!sameShape(seed.shape, of.shape) || seed.dtype !== of.dtype))
    throw new ShapeError(
      `The seed must be ${of.dtype} ${shown(of.shape)} like the value to differentiate, not ${seed.dtype} ${shown(seed.shape)}.`,
    )
}

/** The part of a graph through which gradients flow. */
class Path {
  readonly of: Tensor
  readonly at: readonly Tensor[]
  /** Nodes that pass gradients on, inputs before users. */
  readonly nodes: readonly Node[]
  /** Tensors whose gradients are needed. */
  readonly needed: ReadonlySet<Tensor>
  private readonly order: readonly Node[]

  constructor(of: Tensor, at: readonly Tensor[]) {
    this.of = of
    this.at = at
    this.order = topological([of])
    const below = new Set<Tensor>()
    const wanted = new Set(at)
    const passing: Node[] = []
    for (const node of this.order) {
      const passes = node.op.gradient !== 'none' && node.inputs.some((x) => x && below.has(x))
      if (passes) passing.push(node)
      for (const t of node.outputs) if (wanted.has(t) || (passes && isFloat(t.dtype))) below.add(t)
    }
    // Of what lies above `at`, only what reaches `of` through floating-point values takes part.
    const reached = new Set<Tensor>([of])
    const nodes: Node[] = []
    for (const node of passing.reverse()) {
      if (!node.outputs.some((t) => reached.has(t) && below.has(t))) continue
      nodes.push(node)
      for (const x of node.inputs) if (x && below.has(x)) reached.add(x)
    }
    this.nodes = nodes.reverse()
    this.needed = intersect(reached, below)
  }

  /** Refuses tensors that no gradient reaches. */
  check(): void {
    for (const t of this.at) {
      if (this.needed.has(t)) continue
      if (!this.order.includes(t.node))
        throw new EditError(`The value to differentiate does not depend on ${nameOf(t)}, so there is no gradient there.`)
      const blocked = this.blocker(t)
      throw new EditError(
        `The value to differentiate does not depend on ${nameOf(t)} in a differentiable way: ${blocked ? `every path runs through ops like '${blocked}', which have no gradient` : 'only its shape is read'}.`,
      )
    }
  }

  /** The first op without a gradient that a tensor's value runs into. */
  private blocker(t: Tensor): string | undefined {
    const above = new Set<Node>([t.node])
    for (const node of this.order) {
      if (node === t.node || !node.inputs.some((x) => x && above.has(x.node))) continue
      above.add(node)
      if (node.op.gradient === 'none') return node.op.name
    }
    return undefined
  }
}

function intersect<T>(a: ReadonlySet<T>, b: ReadonlySet<T>): Set<T> {
  return new Set([...a].filter((x) => b.has(x)))
}

/** Asks the rules from `of` down. */
function sweep(path: Path, options: DifferentiateOptions): Pick<Differentiated, 'grads' | 'saved'> {
  const segments = options.cut ? new BackwardSegments(path.of, options.recompute) : undefined
  // Rules look into what gradients are made of; a given seed stays one thing, so that it can be differentiated at.
  const seed = options.seed ? identity(options.seed) : expandTo(scalar(1, path.of.dtype), path.of)
  const parts = new Map<Tensor, Tensor[]>([[path.of, [seed]]])
  const summed = new Map<Tensor, Tensor>()
  const gradientOf = (t: Tensor): Tensor | undefined => {
    const known = summed.get(t)
    if (known) return known
    const list = parts.get(t)
    if (!list) return undefined
    const sum = combine(list)
    summed.set(t, sum)
    return sum
  }
  for (const node of [...path.nodes].reverse()) {
    const grads = node.outputs.map(gradientOf)
    if (grads.every((g) => g === undefined)) continue
    for (const [i, g] of ask(node, grads, path.needed, segments).entries()) {
      const x = node.inputs[i]
      if (!g || !x || !path.needed.has(x)) continue
      if (!sameShape(g.shape, x.shape) || g.dtype !== x.dtype)
        throw new ShapeError(
          `The gradient rule of '${node.op.name}' gave ${g.dtype} ${shown(g.shape)} for an input of ${x.dtype} ${shown(x.shape)}; correct the rule.`,
        )
      const list = parts.get(x)
      if (list) list.push(g)
      else parts.set(x, [g])
    }
  }
  const grads = path.at.map((t) => gradientOf(t) ?? zerosLike(t))
  return { grads, saved: segments?.savedFor(grads) ?? new Map() }
}

function ask(
  node: Node,
  grads: readonly (Tensor | undefined)[],
  needed: ReadonlySet<Tensor>,
  segments: BackwardSegments | undefined,
): readonly (Tensor | undefined)[] {
  const rule = node.op.gradient
  if (typeof rule !== 'function') return []
  const needs = node.inputs.map((x) => x !== undefined && needed.has(x))
  if (!segments) return rule({ node, attrs: node.attrs, inputs: node.inputs, outputs: node.outputs, needs, vjp: innerVjp }, grads)
  const read = (x: Tensor | undefined) => x && segments.held(x, node)
  const context = {
    node,
    attrs: node.attrs,
    inputs: node.inputs.map(read),
    outputs: node.outputs.map((t) => segments.held(t, node)),
    needs,
    vjp: innerVjp,
  }
  if (node.op.name === 'cut') return [segments.crossed(grads[0] as Tensor, node)]
  return rule(context, grads)
}

/** Gradients of the sum of `outputs · seeds`; undefined for those that it does not depend on. */
function innerVjp(outputs: readonly Tensor[], seeds: readonly Tensor[], at: readonly Tensor[]): (Tensor | undefined)[] {
  if (outputs.length === 0) return at.map(() => undefined)
  const of = outputs.map((y, i) => y.mul(seeds[i] as Tensor).sum()).reduce((a, b) => a.add(b))
  const { needed } = new Path(of, at)
  const reached = at.filter((t) => needed.has(t))
  const { grads } = reached.length > 0 ? differentiate({ of, at: reached }) : { grads: [] }
  return at.map((t) => grads[reached.indexOf(t)])
}

/**
 * Segments of the backward pass. With forward segments of indices up to M, what runs backward over the segment before the
 * mark of index k gets the index 2M + 1 − k: later than all forward segments, and in reverse order. The last forward
 * segment is followed backward at once, in the same session.
 */
class BackwardSegments {
  private readonly segmentOf = new Map<Node, number>()
  private readonly indices: readonly number[]
  private readonly holds = new Map<string, { readonly of: Tensor; readonly segment: number; readonly tensor: Tensor }>()
  private readonly copies = new Map<string, readonly Tensor[]>()
  private readonly recompute: (segment: number) => boolean

  constructor(of: Tensor, recompute: (segment: number) => boolean = () => false) {
    this.recompute = recompute
    for (const node of topological([of])) {
      let segment = node.op.name === 'cut' ? (node.attrs.index as number) : -1
      for (const x of node.inputs) if (x) segment = Math.max(segment, this.segmentOf.get(x.node) as number)
      this.segmentOf.set(node, segment)
    }
    this.indices = [...new Set(this.segmentOf.values())].filter((s) => s >= 0).sort((a, b) => a - b)
  }

  /** Index of the backward pass over the segment that holds `node`; undefined for the last segment. */
  private backward(node: Node): number | undefined {
    const own = this.segmentOf.get(node) as number
    const next = this.indices.find((s) => s > own)
    return next === undefined ? undefined : 2 * (this.indices.at(-1) as number) + 1 - next
  }

  /** A forward value as the backward pass over `node` reads it: what is computed from it belongs to that pass, instead of being kept too. */
  held(x: Tensor, node: Node): Tensor {
    const index = this.backward(node)
    if (index === undefined) return x
    const own = this.segmentOf.get(node) as number
    return this.recompute(own) ? this.again(x, own, index) : this.kept(x, own, index)
  }

  private kept(x: Tensor, own: number, index: number): Tensor {
    // Weights and what depends on inputs alone is had in every segment.
    if (this.segmentOf.get(x.node) === -1) return x
    const key = `${x.node.id}.${x.index}@${index}`
    let mark = this.holds.get(key)
    if (!mark) {
      mark = { of: x, segment: own, tensor: cut(x, index) }
      this.holds.set(key, mark)
    }
    return mark.tensor
  }

  /** The same value computed once more, in the segment `index`, from what entered the segment `own`. */
  private again(x: Tensor, own: number, index: number): Tensor {
    const { node } = x
    if (this.segmentOf.get(node) !== own || node.op.name === 'cut') return this.kept(x, own, index)
    const key = `${node.id}@${index}`
    let made = this.copies.get(key)
    if (!made) {
      made = apply(
        node.op.name,
        node.inputs.map((i) => i && this.again(i, own, index)),
        node.attrs,
      )
      this.copies.set(key, made)
    }
    return made[x.index] as Tensor
  }

  /** What is kept for some gradients, by the segment whose backward pass reads it. */
  savedFor(grads: readonly Tensor[]): Map<number, Set<Tensor>> {
    const used = new Set(topological(grads))
    const saved = new Map<number, Set<Tensor>>()
    for (const { of, segment, tensor } of this.holds.values()) {
      if (!used.has(tensor.node)) continue
      const list = saved.get(segment) ?? new Set()
      // A mark is no value of its own.
      let value = of
      while (value.node.op.name === 'identity') value = value.node.inputs[0] as Tensor
      saved.set(segment, list.add(value))
    }
    return saved
  }

  /** A gradient that leaves the backward pass of one segment for that of the one before. */
  crossed(g: Tensor, mark: Node): Tensor {
    const index = this.backward((mark.inputs[0] as Tensor).node)
    return index === undefined ? g : cut(g, index)
  }
}

/** What to call a tensor in a sentence. */
function nameOf(t: Tensor): string {
  const { op, attrs } = t.node
  if (op.name === 'input') return `the input '${attrs.name as string}'`
  if (op.name === 'weight') return `the weight '${(attrs.ref as { name: string }).name}'`
  return `the result of '${op.name}' of shape ${shown(t.shape)}`
}
