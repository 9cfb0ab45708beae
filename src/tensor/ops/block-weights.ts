/** @file Products with weights packed to 4 or 8 bits in blocks, each with a scale, perhaps a zero point and an offset. */
import { ShapeError, UsageError } from '../../base/errors.ts'
import { bytesOf, sizeOf } from '../../base/types.ts'
import { need, one } from '../shape.ts'
import { apply1, defineOp, shown, type Tensor } from '../tensor.ts'
import { bitAnd, shiftRight } from './bits.ts'
import { add, cast, mul, sub } from './elementwise.ts'
import { gather } from './indexing.ts'
import { concat, reshape, slice, squeeze, unsqueeze } from './layout.ts'
import { type WeightPlace, type WeightRef, weight, weightBytes } from './leaf.ts'
import { matmul } from './linear.ts'
import { sum } from './reduce.ts'

/** How a packed weight [n, k] lies in bytes: rows of blocks of `block` values along k, the lower half of a byte first. */
export interface BlockLayout {
  readonly n: number
  readonly k: number
  readonly block: number
  readonly bits: 4 | 8
}

const layoutOf = (attrs: Readonly<Record<string, unknown>>) => attrs as unknown as BlockLayout
const blocksOf = ({ k, block }: BlockLayout) => Math.ceil(k / block)

/** How a product with packed weights is computed. */
export interface BlockProduct {
  /** Added to all values of a block [n, blocks]. */
  readonly offsets?: Tensor | undefined
  /** What ONNX Runtime may compute in: 4 rounds x to 8 bits in blocks, 0 (the default) and 1 keep it as it is. */
  readonly accuracy?: number
}

/** Refuses parts that do not make up a packed weight of the layout. */
function checkPacked(op: string, [packed, scales, zeros, offsets]: readonly (Tensor | undefined)[], layout: BlockLayout): void {
  const { n, k, block, bits } = layout
  if ((bits !== 4 && bits !== 8) || block < 16 || (block & (block - 1)) !== 0)
    throw new ShapeError(`'${op}' needs 4 or 8 bits and blocks of a power of two from 16 on, not ${bits} bits in blocks of ${block}.`)
  const count = blocksOf(layout)
  const expected = [n, count, (block * bits) / 8]
  if (!packed || !scales) throw new ShapeError(`'${op}' needs packed values and scales.`)
  if (packed.dtype !== 'uint8' || packed.shape.join() !== expected.join())
    throw new ShapeError(`'${op}' of a weight [${n}, ${k}] needs uint8 ${shown(expected)}, not ${packed.dtype} ${shown(packed.shape)}.`)
  if (scales.shape.join() !== [n, count].join())
    throw new ShapeError(`'${op}' of a weight [${n}, ${k}] needs scales [${n}, ${count}], not ${shown(scales.shape)}.`)
  const rowBytes = Math.ceil((count * bits) / 8)
  if (zeros && (zeros.dtype !== 'uint8' || zeros.shape.join() !== [n, rowBytes].join()))
    throw new ShapeError(
      `'${op}' of a weight [${n}, ${k}] needs zero points uint8 [${n}, ${rowBytes}], not ${zeros.dtype} ${shown(zeros.shape)}.`,
    )
  if (offsets && (offsets.dtype !== scales.dtype || offsets.shape.join() !== scales.shape.join() || k % block !== 0))
    throw new ShapeError(
      `'${op}' of a weight [${n}, ${k}] in blocks of ${block} needs whole blocks and offsets like its scales, not ${shown(offsets.shape)}.`,
    )
}

/** Refuses a gradient at what packed weights are made of. */
const frozen = (op: string) => (): never => {
  throw new UsageError(`'${op}' has no gradient at its scales; packed weights are frozen, so unpack them to train them.`)
}

defineOp({
  name: 'matmul_blocks',
  doc: 'x [..., k] times the transpose of a packed weight [n, k] of 4 or 8 bits (inputs: x, packed, scales, zero points, offsets).',
  infer: (inputs, a) => {
    const [x, , scales] = [0, 1, 2].map((i) => need('matmul_blocks', inputs, i)) as [Tensor, Tensor, Tensor]
    const layout = layoutOf(a)
    checkPacked('matmul_blocks', inputs.slice(1), layout)
    if (x.rank < 2 || x.shape.at(-1) !== layout.k || x.dtype !== scales.dtype)
      throw new ShapeError(
        `'matmul_blocks' with a weight [${layout.n}, ${layout.k}] of ${scales.dtype} scales cannot use x ${x.dtype} ${shown(x.shape)}.`,
      )
    return one(x.dtype, x.shape.with(-1, layout.n))
  },
  fuses: ({ inputs: [x, , , , offsets] }) => !offsets && (x?.dtype === 'float32' || x?.dtype === 'float16'),
  lower: (e, [x, packed, scales, zeros], { attrs }) => {
    const { n, k, block, bits } = layoutOf(attrs)
    return e.emit(
      'MatMulNBits',
      [x as string, packed as string, scales as string, zeros ?? ''],
      { N: n, K: k, block_size: block, bits, accuracy_level: (attrs.accuracy as number | undefined) ?? 0 },
      { domain: 'com.microsoft' },
    )
  },
  expand: (inputs, a) => {
    const [x, packed, scales, zeros, offsets] = inputs as Tensor[] as [Tensor, Tensor, Tensor, Tensor?, Tensor?]
    if (!offsets) return { outputs: [matmul(x, apply1('dequantize_blocks', [packed, scales, zeros], a), { transB: true })] }
    // Offsets meet the sums of x over blocks: a product that is smaller than the whole by the length of a block.
    const apart = reshape(x, [...x.shape.slice(0, -1), blocksOf(layoutOf(a)), layoutOf(a).block])
    const product = apply1('matmul_blocks', [x, packed, scales, zeros], a)
    return { outputs: [add(product, matmul(sum(apart, [-1]), offsets, { transB: true }))] }
  },
  gradient: ({ inputs: [, packed, scales, zeros, offsets], attrs, needs }, [g]) => {
    if (needs.slice(1).some(Boolean)) frozen('matmul_blocks')()
    const through = matmul(g as Tensor, apply1('dequantize_blocks', [packed, scales, zeros], attrs))
    return [offsets ? perBlock(through, matmul(g as Tensor, offsets), layoutOf(attrs)) : through]
  },
})

/** Values [..., k] plus one number for each block [..., blocks]. */
function perBlock(values: Tensor, numbers: Tensor, { block }: BlockLayout): Tensor {
  const apart = reshape(values, [...numbers.shape, block])
  return reshape(add(apart, unsqueeze(numbers, numbers.rank)), values.shape)
}

defineOp({
  name: 'dequantize_blocks',
  doc: 'A packed weight of 4 or 8 bits as floats [n, k] (inputs: packed, scales, zero points, offsets).',
  infer: (inputs, a) => {
    const [, scales] = [need('dequantize_blocks', inputs, 0), need('dequantize_blocks', inputs, 1)]
    checkPacked('dequantize_blocks', inputs, layoutOf(a))
    return one(scales.dtype, [layoutOf(a).n, layoutOf(a).k])
  },
  expand: ([packed, scales, zeros, offsets], a) => {
    const layout = layoutOf(a)
    const [bytes, factors] = [packed as Tensor, scales as Tensor]
    const grouped = asIntegers(bytes, factors, zeros, layout)
    const scaled = grouped ? apply1('dequantize_grouped', grouped, { block: layout.block }) : takenApart(bytes, factors, zeros, layout)
    return { outputs: [offsets ? perBlock(scaled, offsets, layout) : scaled] }
  },
  gradient: frozen('dequantize_blocks'),
})

/**
 * The stored bytes read in place as 4- or 8-bit integers [n, k], with scales and zero points for each block; undefined
 * where their layout differs from what packed integers have: rows that end within a block, or an odd number of zero points.
 * ONNX Runtime keeps such nodes as they are, while it would compute bit operations on weights once and keep the floats.
 */
function asIntegers(packed: Tensor, scales: Tensor, zeros: Tensor | undefined, layout: BlockLayout): Tensor[] | undefined {
  const { n, k, block, bits } = layout
  const count = blocksOf(layout)
  const stored = (t: Tensor) => (t.node.op.name === 'weight' ? (t.node.attrs.ref as WeightRef) : undefined)
  const [bytes, points] = [stored(packed), zeros && stored(zeros)]
  const inStep = bits === 8 || count % 2 === 0
  if (!bytes || scales.dtype !== 'float32' || k % block !== 0 || !inStep || (zeros && !points)) return undefined
  const dtype = bits === 4 ? 'uint4' : 'uint8'
  return [weight({ ...bytes, dtype, shape: [n, k] }), scales, ...(points ? [weight({ ...points, dtype, shape: [n, count] })] : [])]
}

/** The floats by bit operations, for packed values of any origin. */
function takenApart(packed: Tensor, scales: Tensor, zeros: Tensor | undefined, layout: BlockLayout): Tensor {
  const { n, k, block, bits } = layout
  const count = blocksOf(layout)
  const { dtype } = scales
  const values = (bytes: Tensor, perRow: number) => {
    if (bits === 8) return cast(bytes, dtype)
    const halves = [bitAnd(bytes, 15), shiftRight(bytes, 4)].map((half) => unsqueeze(cast(half, dtype), bytes.rank))
    return concat(halves, bytes.rank).reshape([...bytes.shape.slice(0, -1), perRow])
  }
  const q = values(packed, block)
  const points = zeros && slice(values(zeros, (zeros.shape[1] as number) * (8 / bits)), 1, 0, count)
  const whole = mul(sub(q, points ? unsqueeze(points, 2) : 2 ** (bits - 1)), unsqueeze(scales, 2)).reshape([n, count * block])
  return count * block === k ? whole : slice(whole, 1, 0, k)
}

defineOp({
  name: 'dequantize_grouped',
  doc: '(q − zero point) · scale for integers [n, k] whose scales and zero points [n, k/block] hold for blocks along the last axis; without zero points, the middle of the range.',
  infer: (inputs, a) => {
    const [q, scales] = [0, 1].map((i) => need('dequantize_grouped', inputs, i)) as [Tensor, Tensor]
    const zeros = inputs[2]
    const [n, k] = q.shape
    const expected = [n, (k as number) / (a.block as number)]
    const misfit = zeros && (zeros.shape.join() !== expected.join() || zeros.dtype !== q.dtype)
    if (q.rank !== 2 || scales.shape.join() !== expected.join() || misfit)
      throw new ShapeError(
        `'dequantize_grouped' of ${shown(q.shape)} in blocks of ${a.block} needs scales and zero points ${shown(expected as number[])}.`,
      )
    return one(scales.dtype, q.shape)
  },
  lower: (e, [q, scales, zeros], { attrs: a, inputs: [integers, factors] }) => {
    const { dtype } = integers as Tensor
    const shape = (factors as Tensor).shape as number[]
    // A constant in the program, since weights in memory cannot stand beside weights in files.
    const middle = () => e.constant(dtype, shape, new Uint8Array(bytesOf(dtype, sizeOf(shape))).fill(dtype === 'uint4' ? 0x88 : 0x80))
    return e.emit('DequantizeLinear', [q as string, scales as string, zeros || middle()], { axis: 1, block_size: a.block as number })
  },
  gradient: frozen('dequantize_grouped'),
})

defineOp({
  name: 'gather_blocks',
  doc: 'Rows of a packed weight of 4 or 8 bits as floats [..., k] (inputs: packed [n, k·bits/8], scales, zero points, indices).',
  infer: (inputs, a) => {
    const [packed, scales, , ids] = [0, 1, 1, 3].map((i) => need('gather_blocks', inputs, i)) as [Tensor, Tensor, Tensor, Tensor]
    const { n, k, block, bits } = layoutOf(a)
    if (k % block !== 0 || packed.dtype !== 'uint8' || packed.shape.join() !== [n, (k * bits) / 8].join())
      throw new ShapeError(`'gather_blocks' of a table [${n}, ${k}] needs whole blocks in uint8 rows, not ${shown(packed.shape)}.`)
    return one(scales.dtype, [...ids.shape, k])
  },
  lower: (e, [packed, scales, zeros, ids], { attrs }) =>
    e.emit(
      'GatherBlockQuantized',
      [packed as string, ids as string, scales as string, zeros ?? ''],
      { bits: layoutOf(attrs).bits, block_size: layoutOf(attrs).block, gather_axis: 0, quantize_axis: 1 },
      { domain: 'com.microsoft' },
    ),
  gradient: frozen('gather_blocks'),
})

/** x [..., k] times the transpose of a packed weight [n, k]; `zeros` are packed like the values, one for each block. */
export const matmulBlocks = (
  x: Tensor,
  packed: Tensor,
  scales: Tensor,
  zeros: Tensor | undefined,
  layout: BlockLayout,
  options: BlockProduct = {},
) => apply1('matmul_blocks', [x, packed, scales, zeros, options.offsets], attrsOf(layout, options))

/** A packed weight as floats [n, k]. */
export const dequantizeBlocks = (
  packed: Tensor,
  scales: Tensor,
  zeros: Tensor | undefined,
  layout: BlockLayout,
  options: BlockProduct = {},
) => apply1('dequantize_blocks', [packed, scales, zeros, options.offsets], attrsOf(layout, options))

const attrsOf = (layout: BlockLayout, { accuracy }: BlockProduct) => ({ ...layout, ...(accuracy === undefined ? {} : { accuracy }) })

/** A packed weight that was written as floats, if the tensor is one. */
const packedOf = (t: Tensor) => (t.node.op.name === 'dequantize_blocks' ? t.node : undefined)

/** x·w, or x·wᵀ with `transB`; a packed weight that enters written as floats is used as it is stored. */
export function matmulWeight(x: Tensor, w: Tensor, transB: boolean): Tensor {
  const turned = !transB && w.node.op.name === 'transpose' ? (w.node.inputs[0] as Tensor) : undefined
  const node = packedOf(transB ? w : (turned ?? w))
  const fits = node && (transB || turned)
  return fits ? apply1('matmul_blocks', [x, ...node.inputs], node.attrs) : matmul(x, w, { transB })
}

/** Matrix `at` of a stack [of, n, k]; of a packed stack, its rows stay packed. */
export function stackItem(stack: Tensor, at: number): Tensor {
  const node = stack.node.op.name === 'reshape' ? packedOf(stack.node.inputs[0] as Tensor) : undefined
  if (!node) return squeeze(slice(stack, 0, at, at + 1), 0)
  const n = stack.shape[1] as number
  const parts = node.inputs.map((t) => t && rowsOf(t, at * n, (at + 1) * n))
  return apply1('dequantize_blocks', parts, { ...node.attrs, n })
}

/** Rows of a weight where they lie. */
function rowsOf(t: Tensor, from: number, to: number): Tensor {
  if (t.node.op.name !== 'weight') return slice(t, 0, from, to)
  const ref = t.node.attrs.ref as WeightRef
  const [rows, ...rest] = ref.shape as [number, ...number[]]
  const each = weightBytes(ref) / rows
  const { place } = ref
  const part: WeightPlace =
    'path' in place
      ? { path: place.path, offset: place.offset + from * each, bytes: (to - from) * each }
      : { data: place.data.subarray(from * each, to * each), key: `${place.key}[${from}]` }
  return weight({ ...ref, shape: [to - from, ...rest], place: part })
}

/** Rows of a table by their indices; of a packed table, or one of another float type, only these rows become float32. */
export function lookup(table: Tensor, ids: Tensor): Tensor {
  if (table.node.op.name === 'cast') return cast(gather(table.node.inputs[0] as Tensor, ids), table.dtype)
  const node = packedOf(table)
  if (!node) return gather(table, ids)
  const layout = layoutOf(node.attrs)
  const [packed, scales, zeros, offsets] = node.inputs as [Tensor, Tensor, Tensor?, Tensor?]
  const rows = [layout.n, (layout.k * layout.bits) / 8]
  // The same bytes under another shape, so that the table stays a weight of the program.
  const bytes = packed.node.op.name === 'weight' ? weight({ ...(packed.node.attrs.ref as WeightRef), shape: rows }) : reshape(packed, rows)
  const values = apply1('gather_blocks', [bytes, scales, zeros, ids], { ...layout })
  return offsets ? perBlock(values, gather(offsets, ids), layout) : values
}
