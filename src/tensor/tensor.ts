/** @file Traced tensors: values of a graph that has not run yet. A graph is nothing but tensors pointing at the nodes that make them. */
import { ShapeError, UsageError } from '../base/errors.ts'
import type { DType, TypedArray } from '../base/types.ts'
import type { Device } from './runtime/runtime.ts'

/** One axis of a traced tensor: a length, or the name of a length that is known only when the program runs (`batch`, `pos`). */
export type Dim = number | string
/** The axes of a traced tensor. */
export type Shape = readonly Dim[]

/** Element type and axes of a traced tensor. */
export interface TensorType {
  readonly dtype: DType
  readonly shape: Shape
}

/** Settings of a node that are part of the compiled program. */
export type Attrs = Readonly<Record<string, unknown>>

/** One application of an op to tensors. */
export interface Node {
  readonly id: number
  readonly op: OpRow
  readonly inputs: readonly (Tensor | undefined)[]
  readonly attrs: Attrs
  readonly outputs: readonly Tensor[]
}

/** Emits the ONNX nodes that an op becomes; see `lower.ts`. */
export interface Emitter {
  /** Adds an ONNX node and returns the names of its outputs. An empty input name leaves an optional input out. */
  emit(
    opType: string,
    inputs: readonly string[],
    attrs?: Record<string, unknown>,
    options?: { outputs?: number; domain?: string },
  ): string[]
  /** Name of an initializer with these values; equal ones are stored once. */
  constant(dtype: DType, shape: readonly number[], data: TypedArray | readonly number[]): string
  /** Name of a one-dimensional int64 tensor with the sizes of `shape`, symbols read from the tensors at run time. */
  sizes(shape: Shape, from: readonly Tensor[]): string
  /** The name under which a tensor of the graph is known here. */
  nameOf(tensor: Tensor): string
  /** The attribute value for the body of a loop: a graph from `inputs` to `outputs` that may read the values named in `outside`. */
  body(inputs: readonly Tensor[], outputs: readonly Tensor[], outside: ReadonlyMap<Tensor, string>): unknown
}

/** What a composite op stands for: its outputs written in simpler ops, and the inner values that have names. */
export interface Expansion {
  readonly outputs: readonly Tensor[]
  readonly inner?: Readonly<Record<string, Tensor>>
}

/** What a gradient rule is given. */
export interface GradientContext {
  readonly node: Node
  readonly attrs: Attrs
  readonly inputs: readonly (Tensor | undefined)[]
  readonly outputs: readonly Tensor[]
  /** Which inputs need a gradient. */
  readonly needs: readonly boolean[]
  /** Vector-Jacobian product of another graph, for rules of ops that hold one; undefined where no gradient reaches. */
  readonly vjp: (outputs: readonly Tensor[], seeds: readonly Tensor[], at: readonly Tensor[]) => (Tensor | undefined)[]
}

/** One row of the op table. */
export interface OpRow {
  readonly name: string
  /** One sentence for the docs. */
  readonly doc: string
  /** Types of the outputs; refuses inputs that do not fit. */
  readonly infer: (inputs: readonly (Tensor | undefined)[], attrs: Attrs) => readonly TensorType[]
  /** Lowering to ONNX: names of the outputs. Absent for composites that only expand. */
  readonly lower?: (e: Emitter, inputs: readonly string[], node: Node) => readonly string[]
  /** Whether the fused lowering can serve a node on a device (the CPU where none is named); it is expanded where not. */
  readonly fuses?: (node: Node, device?: Device) => boolean
  /** The same in simpler ops; what is inside becomes visible. */
  readonly expand?: (inputs: readonly (Tensor | undefined)[], attrs: Attrs) => Expansion
  /** Gradients with respect to the inputs, given those of the outputs; `'none'` where the derivative is zero or undefined everywhere. Composites without a rule are expanded first. */
  readonly gradient?: 'none' | ((context: GradientContext, grads: readonly (Tensor | undefined)[]) => readonly (Tensor | undefined)[])
}

const table = new Map<string, OpRow>()

/** Adds a row to the op table. */
export function defineOp(row: OpRow): OpRow {
  if (table.has(row.name)) throw new UsageError(`The op '${row.name}' is defined twice.`)
  table.set(row.name, row)
  return row
}

/** The op table, by name. */
export const opTable: ReadonlyMap<string, OpRow> = table

let nextId = 1

/** A value of a traced graph; shape and type are known, numbers are not. */
export class Tensor {
  readonly node: Node
  /** Which output of its node this is. */
  readonly index: number
  readonly dtype: DType
  readonly shape: Shape

  constructor(node: Node, index: number, type: TensorType) {
    this.node = node
    this.index = index
    this.dtype = type.dtype
    this.shape = type.shape
  }

  /** Number of axes. */
  get rank(): number {
    return this.shape.length
  }

  /** `this + other`, broadcast. */
  add(other: Tensor | number): Tensor {
    return apply1('add', [this, this.like(other)])
  }
  /** `this - other`, broadcast. */
  sub(other: Tensor | number): Tensor {
    return apply1('sub', [this, this.like(other)])
  }
  /** `this * other` element by element, broadcast. */
  mul(other: Tensor | number): Tensor {
    return apply1('mul', [this, this.like(other)])
  }
  /** `this / other` element by element, broadcast. */
  div(other: Tensor | number): Tensor {
    return apply1('div', [this, this.like(other)])
  }
  /** `-this`. */
  neg(): Tensor {
    return apply1('neg', [this])
  }
  /** Matrix product over the last two axes. */
  matmul(other: Tensor): Tensor {
    return apply1('matmul', [this, other])
  }
  /** The same values with other axes; one axis may be -1. */
  reshape(shape: Shape): Tensor {
    return apply1('reshape', [this], { shape })
  }
  /** Axes in another order. */
  transpose(permutation: readonly number[]): Tensor {
    return apply1('transpose', [this], { permutation })
  }
  /** Sum over axes (all by default). */
  sum(axes?: readonly number[], keepDims = false): Tensor {
    return apply1('sum', [this], { axes: axesOf(this, axes), keepDims })
  }
  /** Mean over axes (all by default). */
  mean(axes?: readonly number[], keepDims = false): Tensor {
    return apply1('mean', [this], { axes: axesOf(this, axes), keepDims })
  }
  /** A part of one axis: `start` inclusive, `end` exclusive, negative from the end. */
  slice(axis: number, start: number, end?: number): Tensor {
    return apply1('slice', [this], { axis: axisOf(this, axis), start, end: end ?? Number.MAX_SAFE_INTEGER, step: 1 })
  }

  private like(other: Tensor | number): Tensor {
    return typeof other === 'number' ? scalar(other, this.dtype) : other
  }
}

/** Applies an op of the table; returns its outputs. */
export function apply(op: string, inputs: readonly (Tensor | undefined)[], attrs: Attrs = {}): readonly Tensor[] {
  const row = table.get(op)
  if (!row) throw new UsageError(`There is no op '${op}' in the op table.`)
  const outputs: Tensor[] = []
  const node: Node = { id: nextId++, op: row, inputs, attrs, outputs }
  for (const [i, type] of row.infer(inputs, attrs).entries()) outputs.push(new Tensor(node, i, type))
  return outputs
}

/** Applies an op with one output. */
export function apply1(op: string, inputs: readonly (Tensor | undefined)[], attrs: Attrs = {}): Tensor {
  return apply(op, inputs, attrs)[0] as Tensor
}

/** A constant scalar. */
export function scalar(value: number, dtype: DType = 'float32'): Tensor {
  return apply1('constant', [], { dtype, shape: [], data: [value] })
}

/** Resolves a possibly negative axis of a tensor. */
export function axisOf(x: Tensor, axis: number): number {
  const resolved = axis < 0 ? axis + x.rank : axis
  if (!Number.isInteger(axis) || resolved < 0 || resolved >= x.rank)
    throw new ShapeError(`Axis ${axis} does not exist in a tensor of shape ${shown(x.shape)}.`)
  return resolved
}

/** Resolves possibly negative axes; all axes when none are given. */
export function axesOf(x: Tensor, axes?: readonly number[]): number[] {
  return axes ? [...new Set(axes.map((a) => axisOf(x, a)))].sort((a, b) => a - b) : x.shape.map((_, i) => i)
}

/** A shape for a message: `[batch, pos, 288]`. */
export function shown(shape: Shape): string {
  return `[${shape.join(', ')}]`
}
