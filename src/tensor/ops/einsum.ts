/** @file Einstein sums: parsed, then written as transposes and matrix products, so that they are fast and have gradients. */
import { ShapeError, UsageError } from '../../base/errors.ts'
import { need, one, product, sameType } from '../shape.ts'
import { apply1, type Dim, defineOp, shown, type Tensor } from '../tensor.ts'
import { mul } from './elementwise.ts'
import { slice, transpose } from './layout.ts'
import { reshapeTo, unsqueezeAll } from './like.ts'
import { matmul } from './linear.ts'

/** A parsed equation, with labels of one character each; those that `...` stands for are digits. */
interface Equation {
  readonly inputs: readonly (readonly string[])[]
  readonly output: readonly string[]
}

function parse(equation: string, xs: readonly Tensor[]): Equation {
  const [left, right, ...more] = equation.replaceAll(' ', '').split('->')
  const bad = (why: string) => new UsageError(`The einsum equation '${equation}' ${why}.`)
  if (left === undefined || more.length > 0) throw bad("must have the form 'ij,jk->ik'")
  const terms = left.split(',')
  if (terms.length !== xs.length) throw bad(`names ${terms.length} inputs, but ${xs.length} are given`)
  let widest = 0
  const letters = (term: string, ellipsis: number) => {
    if (!/^[A-Za-z]*(\.\.\.)?[A-Za-z]*$/.test(term)) throw bad(`has the term '${term}', which is not made of letters and one '...'`)
    const digits = Array.from({ length: ellipsis }, (_, i) => String.fromCharCode(0x100 + widest - ellipsis + i))
    return term.split('...').flatMap((part, i) => [...(i > 0 ? digits : []), ...part])
  }
  const extra = terms.map((t, i) => (t.includes('...') ? (xs[i] as Tensor).rank - t.replace('...', '').length : 0))
  if (extra.some((n) => n < 0)) throw bad('names more axes than an input has')
  widest = Math.max(0, ...extra)
  const inputs = terms.map((t, i) => letters(t, extra[i] as number))
  for (const [i, labels] of inputs.entries())
    if (labels.length !== (xs[i] as Tensor).rank)
      throw bad(`names ${labels.length} axes of input ${i}, which has shape ${shown((xs[i] as Tensor).shape)}`)
  if (right !== undefined) {
    const output = letters(right, right.includes('...') ? widest : 0)
    if (new Set(output).size !== output.length) throw bad('names an axis of the result twice')
    for (const label of output) if (!inputs.some((labels) => labels.includes(label))) throw bad(`has '${label}' in the result only`)
    return { inputs, output }
  }
  // Without an arrow: what '...' stands for, then the letters that occur once, in alphabetical order.
  const all = inputs.flat()
  const once = [...new Set(all)].filter((label) => label >= '\u0100' || all.filter((l) => l === label).length === 1)
  return { inputs, output: once.sort((a, b) => Number(b >= '\u0100') - Number(a >= '\u0100') || (a < b ? -1 : 1)) }
}

/** A tensor with a label for each axis. */
interface Term {
  readonly x: Tensor
  readonly labels: readonly string[]
}

function sizesOf(equation: string, terms: readonly Term[]): Map<string, Dim> {
  const sizes = new Map<string, Dim>()
  for (const { x, labels } of terms)
    for (const [i, label] of labels.entries()) {
      const size = x.shape[i] as Dim
      const known = sizes.get(label) ?? size
      if (known !== size)
        throw new ShapeError(`In the einsum '${equation}' the axis '${label}' is ${known} and ${size}; the lengths must agree.`)
      sizes.set(label, size)
    }
  return sizes
}

/** Takes the diagonal where a label occurs twice in one term. */
function withoutRepeats({ x, labels }: Term): Term {
  const second = labels.findIndex((label, i) => labels.indexOf(label) !== i)
  if (second < 0) return { x, labels }
  const first = labels.indexOf(labels[second] as string)
  const size = x.shape[first]
  if (typeof size !== 'number') throw new ShapeError(`A diagonal needs an axis of known length, not '${size}'.`)
  const rest = labels.map((_, i) => i).filter((i) => i !== first && i !== second)
  const moved = transpose(x, [...rest, first, second])
  const flat = reshapeTo(moved, [...moved.shape.slice(0, -2), size * size], x)
  const diagonal = slice(flat, -1, 0, size * size, size + 1)
  return withoutRepeats({ x: diagonal, labels: [...rest.map((i) => labels[i] as string), labels[first] as string] })
}

/** Sums over the axes that nothing else needs. */
function reducedTo({ x, labels }: Term, needed: ReadonlySet<string>): Term {
  const axes = labels.flatMap((label, i) => (needed.has(label) ? [] : [i]))
  return axes.length === 0 ? { x, labels } : { x: x.sum(axes), labels: labels.filter((label) => needed.has(label)) }
}

function arranged({ x, labels }: Term, order: readonly string[]): Tensor {
  const permutation = order.map((label) => labels.indexOf(label))
  return permutation.every((p, i) => p === i) ? x : transpose(x, permutation)
}

/** Product of two terms, summed over the labels that `needed` leaves out. */
function contracted(a: Term, b: Term, needed: ReadonlySet<string>): Term {
  const left = reducedTo(a, new Set([...needed, ...b.labels]))
  const right = reducedTo(b, new Set([...needed, ...a.labels]))
  const shared = left.labels.filter((label) => right.labels.includes(label))
  const batch = shared.filter((label) => needed.has(label))
  const inner = shared.filter((label) => !needed.has(label))
  const onlyLeft = left.labels.filter((label) => !shared.includes(label))
  const onlyRight = right.labels.filter((label) => !shared.includes(label))
  const size = (label: string) =>
    (left.labels.includes(label) ? left.x.shape[left.labels.indexOf(label)] : right.x.shape[right.labels.indexOf(label)]) as Dim
  const dims = (labels: readonly string[]) => labels.map(size)
  if (inner.length === 0) {
    // Nothing is summed: a broadcast product beats matrix products of width one.
    const after = batch.length + onlyLeft.length
    const a1 = unsqueezeAll(
      arranged(left, [...batch, ...onlyLeft]),
      onlyRight.map((_, i) => after + i),
    )
    const b1 = unsqueezeAll(
      arranged(right, [...batch, ...onlyRight]),
      onlyLeft.map((_, i) => batch.length + i),
    )
    return { x: mul(a1, b1), labels: [...batch, ...onlyLeft, ...onlyRight] }
  }
  const matrix = (term: Term, own: readonly string[]) =>
    reshapeTo(arranged(term, [...batch, ...own, ...inner]), [...dims(batch), product(dims(own)), product(dims(inner))], term.x)
  const result = matmul(matrix(left, onlyLeft), matrix(right, onlyRight), { transB: true })
  const labels = [...batch, ...onlyLeft, ...onlyRight]
  return { x: reshapeTo(result, dims(labels), left.x, right.x), labels }
}

defineOp({
  name: 'einsum',
  doc: 'Products of tensors summed over the axes that the equation leaves out of the result: `bij,bjk->bik`.',
  infer: (inputs, a) => {
    const xs = inputs.map((_, i) => need('einsum', inputs, i))
    sameType('einsum', ...xs)
    const { inputs: labels, output } = parse(a.equation as string, xs)
    const sizes = sizesOf(
      a.equation as string,
      xs.map((x, i) => ({ x, labels: labels[i] as string[] })),
    )
    return one(
      (xs[0] as Tensor).dtype,
      output.map((label) => sizes.get(label) as Dim),
    )
  },
  expand: (inputs, a) => {
    const xs = inputs as Tensor[]
    const { inputs: labels, output } = parse(a.equation as string, xs)
    const terms = xs.map((x, i) => withoutRepeats({ x, labels: labels[i] as string[] }))
    let result = terms[0] as Term
    for (let i = 1; i < terms.length; i++) {
      const needed = new Set([...output, ...terms.slice(i + 1).flatMap((t) => t.labels)])
      result = contracted(result, terms[i] as Term, needed)
    }
    return { outputs: [arranged(reducedTo(result, new Set(output)), output)] }
  },
})

/** Einstein sum: `einsum('bij,bjk->bik', a, b)`; `...` stands for further axes. More than two inputs are joined from the left. */
export const einsum = (equation: string, ...xs: readonly Tensor[]) => apply1('einsum', xs, { equation })
