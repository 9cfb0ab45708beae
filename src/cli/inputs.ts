/** @file Inputs of one forward pass: texts, or tensors under their Hugging Face names. */
import { UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { openSafetensors } from '../models/formats/index.ts'

/** Tensors that a decoder of text is run on. */
export interface RunTensors {
  readonly input_ids: NDArray
  readonly attention_mask: NDArray
  readonly position_ids?: NDArray
}

/** Inputs that other kinds of models take, and what they are. Given to a model without them they must not be ignored. */
const otherInputs: Readonly<Record<string, string>> = {
  pixel_values: 'images',
  pixel_mask: 'images',
  decoder_input_ids: 'a decoder beside an encoder',
  decoder_attention_mask: 'a decoder beside an encoder',
  encoder_hidden_states: 'a decoder beside an encoder',
  encoder_outputs: 'a decoder beside an encoder',
  token_type_ids: 'pairs of texts',
  input_features: 'sound',
  input_values: 'sound',
  inputs_embeds: 'embeddings instead of tokens',
}

/** What an inputs file holds. */
export interface InputsFile {
  readonly tensors: RunTensors
  /** Names of tensors that are no inputs. */
  readonly others: readonly string[]
}

/** Reads an inputs file; what no decoder of text takes is refused, what is no input at all is listed. */
export async function readInputs(path: string): Promise<InputsFile> {
  const store = await openSafetensors(path)
  try {
    const names = [...store.tensors.keys()]
    const foreign = names.find((n) => Object.hasOwn(otherInputs, n))
    if (foreign !== undefined)
      throw new UsageError(`${path} holds '${foreign}' (${otherInputs[foreign]}), which this model does not take; take it out of the file.`)
    if (!store.has('input_ids')) throw new UsageError(`${path} holds no 'input_ids'; store the token ids, [batch, pos], under that name.`)
    const input_ids = integers(path, 'input_ids', await store.readRaw('input_ids'))
    const attention_mask = store.has('attention_mask')
      ? integers(path, 'attention_mask', await store.readRaw('attention_mask'))
      : { ...input_ids, data: new BigInt64Array(input_ids.data.length).fill(1n) }
    const position_ids = store.has('position_ids')
      ? { position_ids: integers(path, 'position_ids', await store.readRaw('position_ids')) }
      : {}
    const own = ['input_ids', 'attention_mask', 'position_ids']
    return { tensors: { input_ids, attention_mask, ...position_ids }, others: names.filter((n) => !own.includes(n)) }
  } finally {
    await store.close()
  }
}

/** As int64 [batch, pos], as which inputs are stored again; booleans are 0 and 1. */
function integers(path: string, name: string, array: NDArray): NDArray<BigInt64Array> {
  if (!/^u?int|^bool/.test(array.dtype) || array.shape.length === 0 || array.shape.length > 2)
    throw new UsageError(`'${name}' in ${path} must hold integers of shape [batch, pos], not ${array.dtype} [${array.shape.join(', ')}].`)
  const shape = array.shape.length === 1 ? [1, array.shape[0] as number] : array.shape
  return { dtype: 'int64', shape, data: BigInt64Array.from(array.data as ArrayLike<number | bigint>, BigInt) }
}

/** Rows of token ids as tensors, padded on the right. */
export function tensorsOfRows(rows: readonly (readonly number[])[], pad: number): RunTensors {
  const width = Math.max(0, ...rows.map((r) => r.length))
  const shape = [rows.length, width]
  const fill = (value: (row: readonly number[], c: number) => number): NDArray<BigInt64Array> => ({
    dtype: 'int64',
    shape,
    data: BigInt64Array.from(rows.flatMap((row) => Array.from({ length: width }, (_, c) => BigInt(value(row, c))))),
  })
  return { input_ids: fill((row, c) => row[c] ?? pad), attention_mask: fill((row, c) => (c < row.length ? 1 : 0)) }
}
