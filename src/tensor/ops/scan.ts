/** @file Loops: one step of a graph repeated along an axis, and running products made of the same mechanism. */
import { ShapeError } from '../../base/errors.ts'
import { Rewriter, tidy, topological } from '../graph.ts'
import { need, sameShape } from '../shape.ts'
import { apply, apply1, axisOf, type Dim, defineOp, type GradientContext, shown, type Tensor, type TensorType } from '../tensor.ts'
import { mul } from './elementwise.ts'
import { flip, slice, squeeze, transpose } from './layout.ts'
import { filledLike, isFloat, zerosLike } from './like.ts'
import { pad } from './padding.ts'

let nextBody = 1

/** One step of a loop: a closed graph from parameters to outputs. */
class Body {
  readonly params: readonly Tensor[]
  readonly outputs: readonly Tensor[]
  private readonly id = nextBody++

  constructor(params: readonly Tensor[], outputs: readonly Tensor[]) {
    this.params = params
    this.outputs = outputs
  }

  /** The outputs with other tensors in the place of the parameters. */
  call(args: readonly Tensor[]): Tensor[] {
    const rules = this.params.map((p, i) => [p, [{ label: 'in a loop', apply: () => args[i] as Tensor }]] as const)
    const rewriter = new Rewriter({ tensors: new Map(rules) })
    return this.outputs.map((t) => rewriter.map(t))
  }

  /** What tells bodies apart when equal nodes are merged. */
  toJSON(): string {
    return `body ${this.id}`
  }
}

interface ScanAttrs {
  readonly body: Body
  /** Number of values carried from step to step; the next inputs are those that are gone through. */
  readonly carried: number
  readonly scanned: number
  /** Whether it goes from the last item to the first. */
  readonly reverse: boolean
}

let nextParam = 1
const param = (like: TensorType) => apply1('input', [], { name: `loop ${nextParam++}`, dtype: like.dtype, shape: like.shape })

defineOp({
  name: 'scan',
  doc: 'A graph applied to the items of the first axis one after another, carrying values from step to step; outputs the last carried values and what each step gives.',
  infer: (inputs, attrs) => {
    const { body, carried, scanned } = attrs as unknown as ScanAttrs
    const length = need('scan', inputs, carried).shape[0] as Dim
    for (let i = 0; i < scanned; i++)
      if (need('scan', inputs, carried + i).shape[0] !== length)
        throw new ShapeError(
          `'scan' goes through axes of ${length} and ${inputs[carried + i]?.shape[0]} at once; they must be equally long.`,
        )
    return body.outputs.map((y, i) => ({ dtype: y.dtype, shape: i < carried ? y.shape : [length, ...y.shape] }))
  },
  lower: (e, names, { attrs, outputs }) => {
    const { body, carried, scanned, reverse } = attrs as unknown as ScanAttrs
    const expander = new Rewriter({ expand: (node) => !node.op.lower || node.op.fuses?.(node) === false })
    const inner = tidy(
      body.outputs.map((t) => expander.map(t)),
      false,
    )
    const fed = carried + scanned
    const outside = new Map(body.params.slice(fed).map((p, i) => [p, names[fed + i] as string] as const))
    const direction = reverse ? 1 : 0
    return e.emit(
      'Scan',
      names.slice(0, fed),
      {
        body: e.body(body.params.slice(0, fed), inner, outside),
        num_scan_inputs: scanned,
        scan_input_directions: Array.from({ length: scanned }, () => direction),
        scan_output_directions: Array.from({ length: outputs.length - carried }, () => direction),
      },
      { outputs: outputs.length },
    )
  },
  gradient: scanGradient,
})

/**
 * Backward through a loop is a loop the other way: it goes through the carried values of each step, which a second run
 * forward writes down, and carries the gradients of the carried values and of what all steps share.
 */
function scanGradient(
  { node, inputs, attrs, needs, vjp }: GradientContext,
  grads: readonly (Tensor | undefined)[],
): (Tensor | undefined)[] {
  const { body, carried, scanned, reverse } = attrs as unknown as ScanAttrs
  const all = inputs as Tensor[]
  const [init, xs, shared] = [all.slice(0, carried), all.slice(carried, carried + scanned), all.slice(carried + scanned)]
  const recording = new Body(body.params, [...body.outputs, ...body.params.slice(0, carried)])
  const recorded = apply('scan', all, { ...attrs, body: recording }).slice(body.outputs.length)

  const moving = init.flatMap((t, i) => (isFloat(t.dtype) ? [i] : []))
  const given = body.outputs.flatMap((_, j) => (j >= carried && grads[j] ? [j] : []))
  const wantedX = xs.flatMap((t, i) => (isFloat(t.dtype) && needs[carried + i] ? [i] : []))
  const wantedShared = shared.flatMap((t, i) => (isFloat(t.dtype) && needs[carried + scanned + i] ? [i] : []))
  const start = [
    ...moving.map((i) => grads[i] ?? zerosLike(node.outputs[i] as Tensor)),
    ...wantedShared.map((i) => zerosLike(shared[i] as Tensor)),
  ]
  const back = scan(
    start,
    [...recorded, ...xs, ...given.map((j) => grads[j] as Tensor)],
    (carry, items) => {
      // The step is taken again from stand-ins, so that gradients with respect to the shared values are those of this step alone.
      const own = shared.map((t) => apply1('identity', [t]))
      const [state, item] = [items.slice(0, carried), items.slice(carried, carried + scanned)]
      const y = body.call([...state, ...item, ...own])
      const at = [
        ...moving.map((i) => state[i] as Tensor),
        ...wantedX.map((i) => item[i] as Tensor),
        ...wantedShared.map((i) => own[i] as Tensor),
      ]
      const seeds = [...carry.slice(0, moving.length), ...items.slice(carried + scanned)]
      const d = vjp(
        [...moving, ...given].map((i) => y[i] as Tensor),
        seeds,
        at,
      ).map((g, i) => g ?? zerosLike(at[i] as Tensor))
      const ofShared = d.slice(moving.length + wantedX.length).map((g, i) => (carry[moving.length + i] as Tensor).add(g))
      return { carry: [...d.slice(0, moving.length), ...ofShared], each: d.slice(moving.length, moving.length + wantedX.length) }
    },
    { reverse: !reverse },
  )
  const at = <T>(list: readonly T[], index: number) => (index < 0 ? undefined : list[index])
  return [
    ...init.map((_, i) => at(back.carry, moving.indexOf(i))),
    ...xs.map((_, i) => at(back.each, wantedX.indexOf(i))),
    ...shared.map((_, i) => (wantedShared.includes(i) ? back.carry[moving.length + wantedShared.indexOf(i)] : undefined)),
  ]
}

/** Values that the step reads from outside, apart from constants, which it keeps. */
function outsideOf(outputs: readonly Tensor[], params: readonly Tensor[]): Tensor[] {
  const own = new Set(params.map((p) => p.node))
  const found = new Set<Tensor>()
  const inside = new Set(own)
  for (const node of topological(outputs)) if (node.inputs.some((x) => x && inside.has(x.node))) inside.add(node)
  const isConstant = (t: Tensor) => t.node.op.name === 'constant'
  const outer = (t: Tensor | undefined) => t && !inside.has(t.node) && !isConstant(t)
  for (const node of inside) for (const x of node.inputs) if (x && outer(x)) found.add(x)
  for (const t of outputs) if (outer(t)) found.add(t)
  return [...found]
}

/**
 * Goes through the first axis of each of `xs` at once: `step` is given the carried values and one item of each, and gives the
 * values to carry on and any results of the step. What it reads from outside is handed in as it is.
 * @returns the last carried values, and the results of all steps along a new first axis.
 */
export function scan(
  init: readonly Tensor[],
  xs: readonly Tensor[],
  step: (carry: readonly Tensor[], items: readonly Tensor[]) => { carry: readonly Tensor[]; each?: readonly Tensor[] },
  options: { reverse?: boolean } = {},
): { carry: Tensor[]; each: Tensor[] } {
  if (xs.length === 0)
    throw new ShapeError("'scan' needs at least one tensor to go through; give it the step numbers (iota) if nothing else.")
  for (const x of xs) if (x.rank === 0) throw new ShapeError("'scan' cannot go through a scalar.")
  const params = [...init.map(param), ...xs.map((x) => param({ dtype: x.dtype, shape: x.shape.slice(1) }))]
  const { carry, each = [] } = step(params.slice(0, init.length), params.slice(init.length))
  if (carry.length !== init.length) throw new ShapeError(`The step of a 'scan' got ${init.length} carried values but gave ${carry.length}.`)
  for (const [i, t] of carry.entries()) {
    const from = init[i] as Tensor
    if (!sameShape(t.shape, from.shape) || t.dtype !== from.dtype)
      throw new ShapeError(
        `The step of a 'scan' must carry on ${from.dtype} ${shown(from.shape)} at place ${i}, not ${t.dtype} ${shown(t.shape)}.`,
      )
  }
  const outputs = [...carry, ...each]
  const shared = outsideOf(outputs, params)
  const inner = shared.map(param)
  const body = new Body([...params, ...inner], new Body(shared, outputs).call(inner))
  const attrs: ScanAttrs = { body, carried: init.length, scanned: xs.length, reverse: options.reverse ?? false }
  const results = apply('scan', [...init, ...xs, ...shared], { ...attrs })
  return { carry: results.slice(0, init.length), each: results.slice(init.length) }
}

defineOp({
  name: 'cumprod',
  doc: 'Running product along an axis.',
  infer: (inputs) => [need('cumprod', inputs, 0)],
  expand: ([value], a) => {
    const x = value as Tensor
    const axis = a.axis as number
    const turned = a.reverse ? flip(x, [axis]) : x
    const product = running(a.exclusive ? shifted(turned, axis, 1) : turned, axis)
    return { outputs: [a.reverse ? flip(product, [axis]) : product] }
  },
})

/** The values moved on along an axis, ones coming in. */
function shifted(x: Tensor, axis: number, by: number): Tensor {
  const amount = (n: number) => x.shape.map((_, i) => (i === axis ? n : 0))
  return slice(pad(x, amount(by), amount(0), 1), axis, 0, -by)
}

/** In log₂(length) steps, each of which doubles how far a product reaches back; an axis without a known length is gone through. */
function running(x: Tensor, axis: number): Tensor {
  const size = x.shape[axis] as Dim
  if (typeof size === 'string') {
    const order = [axis, ...x.shape.map((_, i) => i).filter((i) => i !== axis)]
    const items = transpose(x, order)
    const first = squeeze(filledLike(slice(items, 0, 0, 1), 1), 0)
    const { each } = scan([first], [items], ([carry], [item]) => {
      const next = mul(carry as Tensor, item as Tensor)
      return { carry: [next], each: [next] }
    })
    return transpose(
      each[0] as Tensor,
      order.map((_, i) => order.indexOf(i)),
    )
  }
  let product = x
  for (let by = 1; by < size; by *= 2) product = mul(product, shifted(product, axis, by))
  return product
}

/** Running product along an axis; `exclusive` leaves each value itself out. */
export const cumprod = (x: Tensor, axis: number, options: { exclusive?: boolean; reverse?: boolean } = {}) =>
  apply1('cumprod', [x], { axis: axisOf(x, axis), exclusive: options.exclusive ?? false, reverse: options.reverse ?? false })
