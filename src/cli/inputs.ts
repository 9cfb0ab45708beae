/** @file Inputs of one forward pass: texts, or tensors under their Hugging Face names. */
import { readFile } from 'node:fs/promises'
import { UsageError } from '../base/errors.ts'
import { readFailure } from '../base/files.ts'
import type { NDArray } from '../base/types.ts'
import { openSafetensors } from '../models/formats/index.ts'
import type { ModelTensors } from '../run/index.ts'

/** Inputs that models of some kind take, and how each is read. */
const readers: Readonly<Record<keyof ModelTensors, (path: string, name: string, array: NDArray) => NDArray>> = {
  input_ids: integers,
  attention_mask: integers,
  position_ids: integers,
  token_type_ids: integers,
  decoder_input_ids: integers,
  decoder_attention_mask: integers,
  decoder_position_ids: integers,
  pixel_values: pixels,
}

/** Inputs that no model takes here, and what they are. They must not be ignored. */
const otherInputs: Readonly<Record<string, string>> = {
  pixel_mask: 'parts of images',
  encoder_hidden_states: 'a decoder beside an encoder',
  encoder_outputs: 'a decoder beside an encoder',
  input_features: 'sound',
  input_values: 'sound',
  inputs_embeds: 'embeddings instead of tokens',
}

/** What an inputs file holds. */
export interface InputsFile {
  readonly tensors: ModelTensors
  /** Names of tensors that are no inputs. */
  readonly others: readonly string[]
}

/** Reads an inputs file; what no model takes is refused, what is no input at all is listed. */
export async function readInputs(path: string): Promise<InputsFile> {
  const store = await openSafetensors(path)
  try {
    const names = [...store.tensors.keys()]
    const foreign = names.find((n) => Object.hasOwn(otherInputs, n))
    if (foreign !== undefined)
      throw new UsageError(`${path} holds '${foreign}' (${otherInputs[foreign]}), which no model takes here; take it out of the file.`)
    const own = names.filter((n) => Object.hasOwn(readers, n)) as (keyof ModelTensors)[]
    if (!own.some((n) => n === 'input_ids' || n === 'pixel_values'))
      throw new UsageError(
        `${path} holds no 'input_ids' and no 'pixel_values'; store the token ids, [batch, pos], or the images under that name.`,
      )
    const read = await Promise.all(own.map(async (n) => [n, readers[n](path, n, await store.readRaw(n))] as const))
    const tensors: ModelTensors = Object.fromEntries(read)
    const { input_ids, attention_mask } = tensors
    const all = input_ids && !attention_mask && { ...input_ids, data: new BigInt64Array(input_ids.data.length).fill(1n) }
    return { tensors: { ...tensors, ...(all ? { attention_mask: all } : {}) }, others: names.filter((n) => !Object.hasOwn(readers, n)) }
  } finally {
    await store.close()
  }
}

/** The bytes of image files. */
export function readImages(paths: readonly string[]): Promise<Uint8Array[]> {
  return Promise.all(
    paths.map((path) =>
      readFile(path).catch((error: unknown) => {
        throw readFailure(error, path)
      }),
    ),
  )
}

/** Images as float32 [batch, channel, row, column]. */
function pixels(path: string, name: string, array: NDArray): NDArray {
  if (array.dtype !== 'float32')
    throw new UsageError(
      `'${name}' in ${path} must be float32 [batch, channel, row, column], not ${array.dtype} [${array.shape.join(', ')}].`,
    )
  return array
}

/** As int64 [batch, pos], as which inputs are stored again; booleans are 0 and 1. */
function integers(path: string, name: string, array: NDArray): NDArray<BigInt64Array> {
  if (!/^u?int|^bool/.test(array.dtype) || array.shape.length === 0 || array.shape.length > 2)
    throw new UsageError(`'${name}' in ${path} must hold integers of shape [batch, pos], not ${array.dtype} [${array.shape.join(', ')}].`)
  const shape = array.shape.length === 1 ? [1, array.shape[0] as number] : array.shape
  return { dtype: 'int64', shape, data: BigInt64Array.from(array.data as ArrayLike<number | bigint>, BigInt) }
}

/** Rows of token ids as tensors, padded on the right. */
export function tensorsOfRows(
  rows: readonly (readonly number[])[],
  pad: number,
): Required<Pick<ModelTensors, 'input_ids' | 'attention_mask'>> {
  const width = Math.max(0, ...rows.map((r) => r.length))
  const shape = [rows.length, width]
  const fill = (value: (row: readonly number[], c: number) => number): NDArray<BigInt64Array> => ({
    dtype: 'int64',
    shape,
    data: BigInt64Array.from(rows.flatMap((row) => Array.from({ length: width }, (_, c) => BigInt(value(row, c))))),
  })
  return { input_ids: fill((row, c) => row[c] ?? pad), attention_mask: fill((row, c) => (c < row.length ? 1 : 0)) }
}
