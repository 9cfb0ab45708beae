/** @file The edit op `linear`: a linear map of the value, given as two thin factors. */
import { EditError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { add, matmul, mul, reshape, type Shape, sub } from '../tensor/index.ts'
import type { EditPlace, OwnEdit } from './edit-ops.ts'
import { type ArrayParam, type EditParam, toArray } from './edits.ts'

/** The op made ready: x + scale · ((x − center)·down·up + shift). The rank is a symbol, so that another one compiles nothing. */
export function prepareLinear(params: Readonly<Record<string, EditParam>>, { label, site, sizes }: EditPlace): OwnEdit {
  const width = sizes.reduce((p, n) => p * n, 1)
  const array = (name: string) => (params[name] === undefined ? undefined : toArray(params[name] as ArrayParam, label))
  const wrong = (name: string, shape: readonly number[], wanted: string) =>
    new EditError(
      `The parameter '${name}' of the edit ${label} has shape [${shape.join(', ')}], but '${site}' is ${width} wide, so it must be ${wanted}.`,
    )
  const [down, up, scale] = [array('down'), array('up'), array('scale') ?? toArray(1, label)] as NDArray<Float32Array>[]
  if (!down || !up) throw new EditError(`The edit ${label} needs 'down' and 'up'.`)
  const rank = down.shape[1] ?? 0
  if (down.shape.length !== 2 || down.shape[0] !== width || rank === 0) throw wrong('down', down.shape, `[${width}, rank]`)
  if (up.shape.length !== 2 || up.shape[0] !== rank || up.shape[1] !== width) throw wrong('up', up.shape, `[${rank}, ${width}]`)
  if (scale?.data.length !== 1) throw wrong('scale', scale?.shape ?? [], 'one number')
  const inputs: Record<string, { array: NDArray; shape: Shape }> = {
    down: { array: down, shape: [width, 'rank'] },
    up: { array: up, shape: ['rank', width] },
    scale: { array: { ...scale, shape: [] }, shape: [] },
  }
  for (const name of ['center', 'shift']) {
    const value = array(name)
    if (!value) continue
    if (value.shape.length !== 1 || value.data.length !== width) throw wrong(name, value.shape, `[${width}]`)
    inputs[name] = { array: value, shape: [width] }
  }
  return {
    inputs,
    structure: Object.keys(inputs).join('+'),
    apply: (value, p) => {
      const x = sizes.length === 1 ? value : reshape(value, [...value.shape.slice(0, 2), width])
      const moved = matmul(matmul(p.center ? sub(x, p.center) : x, p.down as NonNullable<typeof p.down>), p.up as NonNullable<typeof p.up>)
      const edited = add(x, mul(p.shift ? add(moved, p.shift) : moved, p.scale as NonNullable<typeof p.scale>))
      return sizes.length === 1 ? edited : reshape(edited, value.shape)
    },
  }
}
