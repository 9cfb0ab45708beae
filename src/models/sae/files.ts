/** @file What the readers of autoencoders share: tensors as float32, transposed, and facts of a configuration. */
import { FormatError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import type { WeightStore } from '../formats/index.ts'

/** Arrays by name. */
export type Arrays = Record<string, NDArray<Float32Array>>

/** A folder that a reader looks at. */
export interface SaeFolder {
  readonly path: string
  /** Files in it, `checkpoints/final.safetensors` among them. */
  readonly files: readonly string[]
  /** What to call it in a record: the path, or the hub id and folder. */
  readonly name: string
}

/** Options of reading an autoencoder. */
export interface ReadSaeOptions {
  /** Factor on activations that the autoencoder was trained on, where its files do not hold it; it is folded into the weights. */
  readonly scale?: number
}

/** All tensors of a store as float32; the store is closed. */
export async function arraysOf(store: WeightStore): Promise<Arrays> {
  try {
    const out: Arrays = {}
    for (const { name, shape } of store.tensors.values())
      out[name] = { dtype: 'float32', shape: [...shape], data: await store.readFloat32(name) }
    return out
  } finally {
    await store.close()
  }
}

/** A matrix with its axes exchanged. */
export function transposed({ shape, data }: NDArray<Float32Array>, what: string): NDArray<Float32Array> {
  if (shape.length !== 2) throw new FormatError(`${what} must be a matrix, not of shape [${shape.join(', ')}].`)
  const [rows, columns] = shape as [number, number]
  const out = new Float32Array(data.length)
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) out[c * rows + r] = data[r * columns + c] as number
  return { dtype: 'float32', shape: [columns, rows], data: out }
}

/** One value repeated: a threshold that all latents share. */
export function repeated(value: number, count: number): NDArray<Float32Array> {
  return { dtype: 'float32', shape: [count], data: new Float32Array(count).fill(value) }
}

/** The single value of a stored scalar. */
export function scalarOf(arrays: Arrays, name: string, what: string): number {
  const array = arrays[name]
  if (array?.data.length !== 1) throw new FormatError(`${what} must hold ${name} as one number.`)
  return array.data[0] as number
}

/** Takes arrays out under new names; refuses what is missing, and leaves nothing behind. */
export function renamed(arrays: Arrays, names: Readonly<Record<string, string>>, what: string): Arrays {
  const missing = Object.values(names).filter((n) => !arrays[n])
  if (missing.length > 0) throw new FormatError(`${what} lacks ${missing.join(', ')}; it holds ${Object.keys(arrays).join(', ')}.`)
  const left = Object.keys(arrays).filter((n) => !Object.values(names).includes(n))
  if (left.length > 0)
    throw new FormatError(`${what} holds ${left.join(', ')}, which belong to no autoencoder of this format that we read.`)
  return Object.fromEntries(Object.entries(names).map(([to, from]) => [to, arrays[from] as NDArray<Float32Array>]))
}

/** Whether a value is an object of JSON. */
export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** A text of a configuration, or undefined. */
export const textOf = (value: unknown): string | undefined => (typeof value === 'string' && value !== '' ? value : undefined)

/** TransformerLens' names of the places that paths of released autoencoders speak of. */
const hooks: Readonly<Record<string, string>> = {
  resid_pre: 'hook_resid_pre',
  resid_mid: 'hook_resid_mid',
  resid_post: 'hook_resid_post',
  attn_out: 'hook_attn_out',
  mlp_out: 'hook_mlp_out',
  mlp_in: 'mlp.hook_in',
  z: 'attn.hook_z',
}

/** The TransformerLens name of a place in a layer. */
export function hookOf(place: string, layer: number | string): string | undefined {
  return Object.hasOwn(hooks, place) ? `blocks.${layer}.${hooks[place]}` : undefined
}
