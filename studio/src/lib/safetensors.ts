/** @file Reading the binary answers: a safetensors file with one float32 tensor. */

/** A tensor of float32. */
export interface Values {
  readonly name: string
  readonly shape: readonly number[]
  readonly axes: readonly string[]
  readonly data: Float32Array
}

/** The one tensor of a safetensors file that the server sent. */
export function readValues(buffer: ArrayBuffer): Values {
  const length = Number(new DataView(buffer).getBigUint64(0, true))
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length))) as Record<string, unknown>
  const { __metadata__: metadata, ...tensors } = header
  const [entry] = Object.entries(tensors) as [string, { dtype: string; shape: number[]; data_offsets: [number, number] }][]
  if (entry?.[1].dtype !== 'F32') throw new Error('The server sent values in a form that this page does not read; reload the page.')
  const [name, { shape, data_offsets }] = entry
  const axes = String((metadata as { axes?: string } | undefined)?.axes ?? '').split(',')
  const start = 8 + length + data_offsets[0]
  // The header is padded, but a view needs a multiple of four whatever a writer does.
  const data = new Float32Array(buffer.slice(start, 8 + length + data_offsets[1]))
  return { name, shape, axes, data }
}
