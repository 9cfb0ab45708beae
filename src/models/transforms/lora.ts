/** @file Low-rank adapters, merged into the matrices that they change. */
import { listed, ModelError, ShapeError } from '../../base/errors.ts'
import type { PeftAdapter } from '../peft.ts'
import type { Draft } from './draft.ts'
import { kind } from './kind.ts'
import { plusProduct } from './matrix.ts'

/** Adds sign · scale · B·A to every matrix that the adapter names. */
function merge(draft: Draft, { modules }: PeftAdapter, sign: 1 | -1): void {
  const missing = [...modules.keys()].filter((m) => !draft.has(`${m}.weight`))
  if (missing.length > 0)
    throw new ModelError(`The adapter changes modules that the model does not have (${listed(missing, 4)}); it belongs to another model.`)
  for (const [module, { a, b, rank, scale }] of modules) {
    const name = `${module}.weight`
    const shape = draft.shape(name)
    const [inside, outside] = [a.length / rank, b.length / rank]
    // A Conv1D of GPT-2 has its matrix the other way round.
    const transposed = shape[0] === inside && shape[1] === outside && (inside !== outside || transposedOf(draft, name))
    if (!transposed && !(shape[0] === outside && shape[1] === inside))
      throw new ShapeError(
        `The adapter's matrices for '${module}' go from ${inside} to ${outside} coordinates, but the weight is [${shape.join(', ')}]; it belongs to another model.`,
      )
    const factor = sign * scale
    const times = (x: Float32Array) => x.map((v) => v * factor)
    const [left, right] = transposed ? [swapped(a, rank, inside), swapped(times(b), outside, rank)] : [times(b), a]
    draft.put(
      name,
      shape,
      plusProduct(
        draft.matrix(name),
        async () => left,
        async () => right,
        rank,
      ),
    )
  }
}

/** Whether the record has a matrix as [in, out]. */
function transposedOf(draft: Draft, name: string): boolean {
  let found = false
  const visit = (part: unknown): void => {
    if (typeof part !== 'object' || part === null) return
    const { weight, layout } = part as { weight?: string; layout?: string }
    if (layout === 'in,out' && weight !== undefined && (weight.endsWith(name) || name.endsWith(weight))) found = true
    for (const inner of Object.values(part)) visit(inner)
  }
  for (let layer = 0; layer < draft.spec.layers; layer++) visit(draft.spec.block(layer))
  return found
}

/** [rows, columns] as [columns, rows]; thin matrices only. */
function swapped(x: Float32Array, rows: number, columns: number): Float32Array {
  const out = new Float32Array(x.length)
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) out[c * rows + r] = x[r * columns + c] as number
  return out
}

export const mergeLora = kind<{ readonly adapter: PeftAdapter }>({
  doc: 'A low-rank adapter is added into the matrices that it changes (Hu et al. 2021).',
  keeps: 'nothing',
  params: ['adapter'],
  apply(draft, { adapter }) {
    merge(draft, adapter, 1)
    return {}
  },
  undo(draft, { adapter }) {
    merge(draft, adapter, -1)
  },
})
