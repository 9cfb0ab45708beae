/** @file Log-sum-exp of the logits of a large vocabulary, gone through in pieces that fit the processor's cache. */
import {
  type Attrs,
  apply,
  customGradient,
  type Dim,
  log,
  matmul,
  max,
  mul,
  reshape,
  scan,
  softmax,
  squeeze,
  sub,
  type Tensor,
  unsqueeze,
} from '../tensor/index.ts'

/** Logits at once, at most. */
const pieceValues = 1 << 22
/** From this many classes on, it pays to go in pieces. */
const manyClasses = 8192

/** A row of features times a table of classes, as it stands in a graph. */
export interface TableProduct {
  /** [… , width] */
  readonly x: Tensor
  /** [class, width] */
  readonly table: Tensor
}

/** The factors of logits that are a product with a large table, looked at through marks; undefined where they are something else. */
export function tableProduct(logits: Tensor): TableProduct | undefined {
  let t = logits
  while (t.node.op.name === 'identity') t = t.node.inputs[0] as Tensor
  const { op, attrs, inputs } = t.node
  if (op.name !== 'matmul' || attrs.transA || !attrs.transB || attrs.alpha !== 1 || t.dtype !== 'float32') return undefined
  const [x, table] = inputs as [Tensor, Tensor]
  const classes = table.shape[0]
  return table.rank === 2 && x.rank >= 2 && typeof classes === 'number' && classes >= manyClasses ? { x, table } : undefined
}

/** x as [piece, row, width]: pieces of a size that suits the cache where the number of rows is known, else items of the first axis. */
function inPieces(x: Tensor, classes: number): Tensor {
  const width = x.shape.at(-1) as Dim
  const rows = x.shape.slice(0, -1)
  if (rows.every((n) => typeof n === 'number')) {
    const all = (rows as number[]).reduce((a, b) => a * b, 1)
    let r = Math.max(1, Math.min(all, Math.floor(pieceValues / classes)))
    while (all % r !== 0) r--
    return reshape(x, [all / r, r, width])
  }
  return x.rank === 3 ? x : unsqueeze(x, 0)
}

const loops = new Map<string, Attrs>()

/** For each piece of rows, the largest logit, and the probabilities. */
function pieces(x: Tensor, table: Tensor): { lse: Tensor; probabilities: Tensor } {
  const split = inPieces(x, table.shape[0] as number)
  const key = `${split.shape.slice(1)} ${table.shape}`
  let attrs = loops.get(key)
  if (!attrs) {
    const { each } = scan([], [split], (_, [item]) => {
      const logits = matmul(item as Tensor, table, { transB: true })
      const p = softmax(logits)
      // The largest probability is at least one over the number of classes, so that its logarithm is safe.
      return { carry: [], each: [sub(max(logits, [-1]), log(max(p, [-1]))), p] }
    })
    attrs = (each[0] as Tensor).node.attrs
    loops.set(key, attrs)
  }
  // Forward and backward pass are given one and the same loop, so that it runs once.
  const [lse, probabilities] = apply('scan', [split, table], attrs) as [Tensor, Tensor]
  return { lse, probabilities }
}

/** A tensor [piece, row, …] in the rows of `x`. */
function likeRows(t: Tensor, x: Tensor): Tensor {
  const rows = x.shape.slice(0, -1)
  if (rows.every((n) => typeof n === 'number')) return reshape(t, [...rows, ...t.shape.slice(2)])
  return x.rank === 3 ? t : squeeze(t, 0)
}

const logSumExpOf = customGradient({
  forward: (x, table) => likeRows(pieces(x as Tensor, table as Tensor).lse, x as Tensor),
  backward: (g, [x, table]) => {
    const [features, classes] = [x, table] as [Tensor, Tensor]
    const { probabilities } = pieces(features, classes)
    const p = likeRows(probabilities, features)
    const factor = unsqueeze(g, -1)
    const flat = (t: Tensor) => (t.rank > 2 && t.shape.every((n) => typeof n === 'number') ? reshape(t, [-1, t.shape.at(-1) as Dim]) : t)
    const [rows, scaled] = [flat(p), flat(mul(features, factor))]
    const ofTable = matmul(rows, scaled, { transA: true })
    return [mul(matmul(p, classes), factor), ofTable.rank === 2 ? ofTable : ofTable.sum([0])]
  },
})

/**
 * log Σ exp of x·tableᵀ over the classes, for each row of `x`: [… , width] and [class, width] to […]. The logits are made a piece at a time; only the
 * probabilities are kept for the backward pass, once.
 */
export function logSumExpOfProduct({ x, table }: TableProduct): Tensor {
  return logSumExpOf(x, table)
}
