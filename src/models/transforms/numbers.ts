/** @file Numbers of fewer bits: what a checkpoint in another type, or on a coarser grid, would hold. */
import { ModelError, UsageError } from '../../base/errors.ts'
import type { Draft } from './draft.ts'
import { kind } from './kind.ts'
import { gridded, type Matrix, narrowed } from './matrix.ts'

/** Changes every matrix; vectors are small and their rounding would touch every value. */
function eachMatrix(draft: Draft, change: (m: Matrix, name: string) => Matrix): void {
  for (const name of draft.names) {
    const shape = draft.shape(name)
    if (shape.length >= 2) draft.put(name, shape, change(draft.matrix(name), name))
  }
}

export const cast = kind<{ readonly dtype: 'float16' | 'bfloat16' }>({
  doc: 'Every matrix is rounded to float16 or bfloat16.',
  keeps: 'nothing',
  params: ['dtype'],
  apply(draft, { dtype }) {
    if (dtype !== 'float16' && dtype !== 'bfloat16')
      throw new UsageError(`Weights are cast to float16 or bfloat16, not to '${String(dtype)}'.`)
    eachMatrix(draft, (m) => narrowed(m, dtype))
    return {}
  },
})

export const quantise = kind<{ readonly bits: number; readonly block?: number }>({
  doc: 'Every matrix is rounded to a symmetric grid with one scale for each block (default 32 values) of a row; the values stay float32.',
  keeps: 'nothing',
  params: ['bits'],
  optional: ['block'],
  apply(draft, { bits, block = 32 }) {
    if (!Number.isInteger(bits) || bits < 2 || bits > 16) throw new UsageError(`bits must be a whole number from 2 to 16, not ${bits}.`)
    if (!Number.isInteger(block) || block < 1) throw new UsageError(`block must be a positive whole number, not ${block}.`)
    eachMatrix(draft, (m, name) => {
      if (m.columns % block !== 0)
        throw new ModelError(`The rows of '${name}' have ${m.columns} values, which are no whole blocks of ${block}; give another block.`)
      return gridded(m, bits, block)
    })
    return {}
  },
})
