/** @file Gradients other than the derivative: straight-through estimates and rules that a caller brings. */
import { ShapeError, UsageError } from '../../base/errors.ts'
import { topological } from '../graph.ts'
import { need, sameShape, sameType } from '../shape.ts'
import { apply, apply1, defineOp, shown, Tensor } from '../tensor.ts'

defineOp({
  name: 'straight_through',
  doc: 'The first input, whose gradient goes to the second one of the same shape as if they were the same.',
  infer: (inputs) => {
    const [value, as] = [need('straight_through', inputs, 0), need('straight_through', inputs, 1)]
    sameType('straight_through', value, as)
    if (!sameShape(value.shape, as.shape))
      throw new ShapeError(`'straight_through' needs two tensors of one shape, not ${shown(value.shape)} and ${shown(as.shape)}.`)
    return [value]
  },
  lower: (_, [value]) => [value as string],
  gradient: (_, [g]) => [undefined, g],
})

/** What a caller gives for a custom gradient: a function of tensors and what it is backward. */
export interface CustomGradient {
  readonly forward: (...inputs: Tensor[]) => Tensor
  /** Gradients at the inputs (undefined: none), given that of the result; of their inputs' shapes. */
  readonly backward: (grad: Tensor, inputs: readonly Tensor[], output: Tensor) => readonly (Tensor | undefined)[]
}

let nextRule = 1

/** Functions of a custom gradient, told apart by number where equal nodes are merged. */
class CustomRule {
  readonly functions: CustomGradient
  private readonly id = nextRule++

  constructor(functions: CustomGradient) {
    this.functions = functions
  }

  toJSON(): string {
    return `custom ${this.id}`
  }
}

defineOp({
  name: 'custom_gradient',
  doc: 'A function of tensors with a gradient that the caller brings.',
  infer: (inputs, a) => [(a.rule as CustomRule).functions.forward(...(inputs as Tensor[]))],
  expand: (inputs, a) => ({ outputs: [(a.rule as CustomRule).functions.forward(...(inputs as Tensor[]))] }),
  gradient: ({ inputs, outputs: [y], attrs }, [g]) => {
    const grads = (attrs.rule as CustomRule).functions.backward(g as Tensor, inputs as Tensor[], y as Tensor)
    if (grads.length !== inputs.length)
      throw new UsageError(
        `The backward function of a custom gradient gave ${grads.length} gradients for ${inputs.length} inputs; give undefined where there is none.`,
      )
    return grads
  },
})

/** `value`, whose gradient goes to `as` unchanged: rounding, sampling and other steps without a slope are trained through by it. */
export const straightThrough = (value: Tensor, as: Tensor) => apply1('straight_through', [value, as])

/**
 * A function of tensors with a gradient of its own. Everything that `forward` reads must be among its inputs (constants
 * apart), since a gradient could not reach it otherwise.
 */
export function customGradient(functions: CustomGradient): (...inputs: Tensor[]) => Tensor {
  const rule = new CustomRule(functions)
  return (...inputs) => {
    const y = apply('custom_gradient', inputs, { rule })[0] as Tensor
    const stand = inputs.map((x) => apply1('input', [], { name: 'custom', dtype: x.dtype, shape: x.shape }))
    const traced = functions.forward(...stand)
    if (!(traced instanceof Tensor)) throw new UsageError('The forward function of a custom gradient must return a tensor.')
    const own = new Set(stand.map((t) => t.node))
    const foreign = topological([traced]).find((n) => (n.op.name === 'input' || n.op.name === 'weight') && !own.has(n))
    if (foreign) {
      const name = (foreign.attrs.name as string | undefined) ?? (foreign.attrs.ref as { name: string }).name
      throw new UsageError(`The forward function of a custom gradient reads '${name}' from outside; make it one of its inputs.`)
    }
    return y
  }
}
