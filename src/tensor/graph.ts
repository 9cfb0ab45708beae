/** @file Walking, rewriting and tidying graphs. A rewrite never changes a graph: it makes a new one that shares what it can. */
import { EditError } from '../base/errors.ts'
import type { NDArray, TypedArray } from '../base/types.ts'
import type { WeightRef } from './ops/leaf.ts'
import { sameShape } from './shape.ts'
import { apply, type Expansion, type Node, shown, Tensor } from './tensor.ts'

/** The nodes that the given tensors depend on, inputs before users; behind the nodes `ends` nothing is visited. */
export function topological(roots: Iterable<Tensor>, ends: ReadonlySet<Node> = new Set()): Node[] {
  const order: Node[] = []
  const seen = new Set<Node>()
  const stack: { node: Node; next: number }[] = []
  for (const root of roots) {
    if (seen.has(root.node)) continue
    seen.add(root.node)
    stack.push({ node: root.node, next: 0 })
    while (stack.length > 0) {
      const top = stack[stack.length - 1] as { node: Node; next: number }
      if (top.next >= top.node.inputs.length || ends.has(top.node)) {
        order.push(top.node)
        stack.pop()
        continue
      }
      const child = top.node.inputs[top.next++]
      if (child && !seen.has(child.node)) {
        seen.add(child.node)
        stack.push({ node: child.node, next: 0 })
      }
    }
  }
  return order
}

/** A change of one tensor: all users of it see the result instead. */
export interface TensorRule {
  /** Tensors of the old graph that the rule reads besides its target; they must not depend on the target. */
  readonly reads?: readonly Tensor[]
  /** The new value; must keep shape and type. */
  readonly apply: (value: Tensor, reads: readonly Tensor[]) => Tensor
  /** What to call it in an error: `add at resid_post.3`. */
  readonly label: string
}

/** Rules of a rewrite. */
export interface RewriteRules {
  /** Changes of tensors, in order. */
  readonly tensors?: ReadonlyMap<Tensor, readonly TensorRule[]>
  /** Composite nodes to be written out in simpler ops. */
  readonly expand?: (node: Node) => boolean
}

/** Copies parts of a graph on demand, applying rules on the way. */
export class Rewriter {
  private readonly rules: RewriteRules
  private readonly done = new Map<Tensor, Tensor>()
  private readonly open = new Set<Tensor>()
  /** Expansions made so far, by the node of the old graph. */
  readonly expansions = new Map<Node, Expansion>()

  constructor(rules: RewriteRules) {
    this.rules = rules
  }

  /** The new counterpart of a tensor of the old graph. */
  map(root: Tensor): Tensor {
    // An explicit stack: graphs are deeper than the call stack.
    const stack: Tensor[] = [root]
    while (stack.length > 0) {
      const t = stack[stack.length - 1] as Tensor
      if (this.done.has(t)) {
        stack.pop()
        continue
      }
      const rules = this.rules.tensors?.get(t) ?? []
      const missing = [...t.node.inputs, ...rules.flatMap((r) => r.reads ?? [])].filter((x): x is Tensor => !!x && !this.done.has(x))
      if (missing.length > 0) {
        if (this.open.has(t) && missing.some((m) => this.open.has(m))) throw cycle(rules)
        this.open.add(t)
        for (const m of missing) {
          if (this.open.has(m)) throw cycle(rules)
          stack.push(m)
        }
        continue
      }
      stack.pop()
      this.open.delete(t)
      this.done.set(t, this.rewritten(t, rules))
    }
    return this.done.get(root) as Tensor
  }

  private rewritten(t: Tensor, rules: readonly TensorRule[]): Tensor {
    let value = this.copyOf(t.node)[t.index] as Tensor
    for (const rule of rules) {
      const reads = (rule.reads ?? []).map((r) => this.done.get(r) as Tensor)
      const next = rule.apply(value, reads)
      if (!(next instanceof Tensor)) throw new EditError(`The edit ${rule.label} must return a tensor.`)
      if (!sameShape(next.shape, value.shape) || next.dtype !== value.dtype)
        throw new EditError(
          `The edit ${rule.label} returned ${next.dtype} ${shown(next.shape)} where ${value.dtype} ${shown(value.shape)} is needed; return a tensor of the same shape and type.`,
        )
      value = next
    }
    return value
  }

  private readonly copies = new Map<Node, readonly Tensor[]>()

  private copyOf(node: Node): readonly Tensor[] {
    const known = this.copies.get(node)
    if (known) return known
    const inputs = node.inputs.map((x) => x && (this.done.get(x) as Tensor))
    let outputs: readonly Tensor[]
    if (node.op.expand && this.rules.expand?.(node)) {
      const expansion = this.nested(node.op.expand(inputs, node.attrs), inputs)
      this.expansions.set(node, expansion)
      outputs = expansion.outputs
    } else {
      const same = inputs.every((x, i) => x === node.inputs[i])
      outputs = same ? node.outputs : apply(node.op.name, inputs, node.attrs)
    }
    this.copies.set(node, outputs)
    return outputs
  }

  /** An expansion may hold composites itself: they are written out too. */
  private nested(expansion: Expansion, inputs: readonly (Tensor | undefined)[]): Expansion {
    const { expand } = this.rules
    if (!expand) return expansion
    const inside = new Rewriter({ expand })
    for (const x of inputs) if (x) inside.done.set(x, x)
    return {
      outputs: expansion.outputs.map((t) => inside.map(t)),
      ...(expansion.inner ? { inner: Object.fromEntries(Object.entries(expansion.inner).map(([name, t]) => [name, inside.map(t)])) } : {}),
    }
  }
}

function cycle(rules: readonly TensorRule[]): EditError {
  const label = rules[0]?.label ?? 'of this graph'
  return new EditError(`The edit ${label} reads a value that is computed after it, so it can never fire; read a site that comes earlier.`)
}

const keyOfAttrs = (attrs: Readonly<Record<string, unknown>>, ids: Map<object, number>): string =>
  JSON.stringify(attrs, (_, value: unknown) => {
    if (value && typeof value === 'object' && 'place' in value && 'dtype' in value) {
      // The same bytes may be read as several types, such as packed integers.
      const ref = value as WeightRef
      return `${weightKey(ref)} ${ref.dtype} [${ref.shape}]`
    }
    if (ArrayBuffer.isView(value) || (Array.isArray(value) && value.length > 64)) {
      const list = value as unknown as TypedArray
      if (list.length <= 64) return [...(list as Iterable<number | bigint>)].map(String)
      let id = ids.get(value as object)
      if (id === undefined) {
        id = ids.size
        ids.set(value as object, id)
      }
      return `#${id}`
    }
    return typeof value === 'number' && (!Number.isFinite(value) || Object.is(value, -0))
      ? `${value < 0 || Object.is(value, -0) ? '-' : ''}${Math.abs(value)}`
      : value
  })

/** A string that tells weights apart by where their bytes lie. */
export function weightKey(ref: WeightRef): string {
  const p = ref.place
  return 'path' in p ? `${p.path}@${p.offset}+${p.bytes}` : `${p.key}+${p.data.byteLength}`
}

/**
 * The same outputs with equal nodes merged, marks removed and chains of reshapes shortened.
 * @param keepCuts whether `cut` marks stay, for a program in segments.
 * @param keepReshapes whether reshapes stay one by one, where what is between them has a name.
 */
export function tidy(outputs: readonly Tensor[], keepCuts: boolean, keepReshapes = false): Tensor[] {
  const done = new Map<Tensor, Tensor>()
  const merged = new Map<string, readonly Tensor[]>()
  const arrays = new Map<object, number>()
  for (const node of topological(outputs)) {
    const inputs = node.inputs.map((x) => x && (done.get(x) as Tensor))
    const transparent = node.op.name === 'identity' || node.op.name === 'stop_gradient' || (node.op.name === 'cut' && !keepCuts)
    if (transparent) {
      done.set(node.outputs[0] as Tensor, inputs[0] as Tensor)
      continue
    }
    if (node.op.name === 'reshape' && !keepReshapes) {
      let from = inputs[0] as Tensor
      while (from.node.op.name === 'reshape') {
        // What the inner reshape read its sizes from may be the only place where the outer one finds them.
        inputs.push(...from.node.inputs.slice(1))
        from = from.node.inputs[0] as Tensor
      }
      inputs[0] = from
      if (sameShape(from.shape, (node.outputs[0] as Tensor).shape)) {
        done.set(node.outputs[0] as Tensor, from)
        continue
      }
    }
    const attrs = node.op.name === 'reshape' ? { shape: (node.outputs[0] as Tensor).shape } : node.attrs
    const key = `${node.op.name}(${inputs.map((x) => (x ? `${x.node.id}.${x.index}` : '')).join()})${keyOfAttrs(attrs, arrays)}`
    let made = merged.get(key)
    if (!made) {
      made = inputs.every((x, i) => x === node.inputs[i]) && attrs === node.attrs ? node.outputs : apply(node.op.name, inputs, attrs)
      merged.set(key, made)
    }
    for (const [i, t] of node.outputs.entries()) done.set(t, made[i] as Tensor)
  }
  return outputs.map((t) => done.get(t) as Tensor)
}

/** Whether `t` depends on `on`. */
export function dependsOn(t: Tensor, on: Tensor): boolean {
  return topological([t]).includes(on.node)
}

/** The values of a constant leaf, if the tensor is one. */
export function constantValue(t: Tensor): NDArray | undefined {
  return t.node.op.name === 'constant' ? (t.node.attrs as unknown as NDArray) : undefined
}
