/** @file The edit op `sae`: from its parameters to what is fed and what is computed. */
import { EditError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { decodeLinear, decodeTraced, encodeNormalized, formKey, normalized, type SaeTensors } from '../models/sae/traced.ts'
import { columnwise, isSaeWeights, type SaeWeights } from '../models/sae/weights.ts'
import { add, gather, mul, neg, reshape, type Shape, sub, type Tensor } from '../tensor/index.ts'
import type { EditPlace, OwnEdit } from './edit-ops.ts'
import type { EditParam } from './edits.ts'

type Mode = 'add' | 'clamp' | 'scale' | 'ablate'

/** How much an activation changes, given what it is and the value that was asked for. */
const changes: Readonly<Record<Mode, (acts: Tensor, values: Tensor) => Tensor>> = {
  add: (_, v) => v,
  clamp: (f, v) => sub(v, f),
  scale: (f, v) => mul(f, sub(v, 1)),
  ablate: (f) => neg(f),
}

/** Symbol of the number of latents. */
const count = 'latents'

/**
 * The op made ready. With the error kept, only the changed latents matter: their columns and rows are fed, not the whole weights, as long
 * as the kind computes each latent from its own column.
 */
export function prepareSae(params: Readonly<Record<string, EditParam>>, place: EditPlace): OwnEdit {
  const { label } = place
  const sae = weightsOf(params.weights, place)
  const { indices, values, mode } = latentsOf(params, sae, label)
  const error = params.error ?? indices.length > 0
  if (typeof error !== 'boolean') throw new EditError(`The parameter 'error' of the edit ${label} must be true or false.`)
  if (error && indices.length === 0)
    throw new EditError(`The edit ${label} changes nothing: it keeps the error and names no latents; name some, or set error to false.`)
  const reads = mode !== 'add'
  const whole = !error || (reads && !columnwise.has(sae.kind))
  const chosen = indices.length > 0
  const weights = whole ? sae.tensors : columnsOf(sae, indices, reads)
  const axis = (name: string, shape: readonly number[]): Shape =>
    whole ? shape : shape.map((d, i) => (i === latentAxis(name) ? count : d))
  const inputs: Record<string, { array: NDArray; shape: Shape }> = Object.fromEntries(
    Object.entries(weights).map(([name, array]) => [name, { array, shape: axis(name, array.shape) }]),
  )
  if (chosen) {
    inputs.values = { array: { dtype: 'float32', shape: [indices.length], data: values }, shape: [count] }
    if (whole)
      inputs.latents = { array: { dtype: 'int64', shape: [indices.length], data: BigInt64Array.from(indices, BigInt) }, shape: [count] }
  }
  return {
    inputs,
    structure: `${formKey(sae)}${whole ? sae.dSae : ''}${chosen ? mode : ''}${error ? ' error' : ''}`,
    apply: (value, p) => {
      const x = place.sizes.length === 1 ? value : reshape(value, [...value.shape.slice(0, 2), sae.dIn])
      const by = normalized(sae, x)
      // Rescaling by decoder norms reads the rows that the columns belong to, so the gathered weights are an autoencoder themselves.
      const acts = whole || reads ? encodeNormalized(sae, p, by.value) : undefined
      const base = error ? x : decodeTraced(sae, p, acts as Tensor, x, by)
      const edited = chosen ? add(base, by.undoDifference(changed(sae, p, acts, mode))) : base
      return place.sizes.length === 1 ? edited : reshape(edited, value.shape)
    },
  }
}

/** What the changed latents add, before normalisation is undone. */
function changed(sae: SaeWeights, p: SaeTensors, acts: Tensor | undefined, mode: Mode): Tensor {
  const own = acts && p.latents ? gather(acts, p.latents, -1) : acts
  const rows = p.latents ? gather(p.W_dec as Tensor, p.latents, 0) : (p.W_dec as Tensor)
  const by = changes[mode](own as Tensor, p.values as Tensor)
  if (mode !== 'add') return decodeLinear(sae, { W_dec: rows }, by)
  // The same at every position: one row instead of one for each.
  return decodeLinear(sae, { W_dec: rows }, reshape(by, [1, 1, by.shape[0] as Shape[number]]))
}

/** The axis of a tensor that counts latents. */
const latentAxis = (name: string) => (name === 'W_enc' ? 1 : name === 'b_dec' ? -1 : 0)

function columnsOf(sae: SaeWeights, indices: readonly number[], reads: boolean): Record<string, NDArray<Float32Array>> {
  const wanted = reads ? Object.keys(sae.tensors).filter((n) => n !== 'b_dec' || sae.subtractsBias) : ['W_dec']
  return Object.fromEntries(wanted.map((name) => [name, picked(sae.tensors[name] as NDArray<Float32Array>, latentAxis(name), indices)]))
}

/** Some rows (axis 0) or columns (axis 1) of an array. */
function picked({ shape, data, dtype }: NDArray<Float32Array>, axis: number, indices: readonly number[]): NDArray<Float32Array> {
  if (axis < 0) return { dtype, shape, data }
  const width = shape[1] ?? 1
  const n = indices.length
  if (axis === 1) {
    const rows = shape[0] as number
    const out = new Float32Array(rows * n)
    for (let r = 0; r < rows; r++) for (const [c, i] of indices.entries()) out[r * n + c] = data[r * width + i] as number
    return { dtype, shape: [rows, n], data: out }
  }
  const out = new Float32Array(n * width)
  for (const [r, i] of indices.entries()) out.set(data.subarray(i * width, (i + 1) * width), r * width)
  return { dtype, shape: [n, ...shape.slice(1)], data: out }
}

function weightsOf(value: EditParam | undefined, { label, site, sizes }: EditPlace): SaeWeights {
  if (!isSaeWeights(value))
    throw new EditError(
      `The parameter 'weights' of the edit ${label} must be a loaded sparse autoencoder; in an edits file, { "file": a folder or file }.`,
    )
  const width = sizes.reduce((p, n) => p * n, 1)
  if (value.dIn !== width)
    throw new EditError(
      `The autoencoder of the edit ${label} is ${value.dIn} wide, but '${site}' is ${width} wide: it belongs to another site or model.`,
    )
  if (value.transcoder) throw new EditError(`The edit ${label} cannot use a transcoder: its output belongs to another site than its input.`)
  return value
}

function latentsOf(params: Readonly<Record<string, EditParam>>, sae: SaeWeights, label: string) {
  const mode = (params.mode ?? 'add') as Mode
  if (!Object.hasOwn(changes, mode))
    throw new EditError(
      `The mode of the edit ${label} must be one of ${Object.keys(changes).join(', ')}, not ${JSON.stringify(params.mode)}.`,
    )
  const given = params.latents
  if (given === undefined) {
    if (params.mode !== undefined) throw new EditError(`The edit ${label} has a mode but no latents; name the latents to change.`)
    return { indices: [], values: new Float32Array(0), mode }
  }
  if (typeof given !== 'object')
    throw new EditError(`The latents of the edit ${label} must be { number: value }, not ${JSON.stringify(given)}.`)
  const list = Array.isArray(given)
  if (list && mode !== 'ablate')
    throw new EditError(`The latents of the edit ${label} are a list, which only ablate takes; give { number: value }.`)
  const entries: [number, number][] = list
    ? (given as readonly number[]).map((i) => [i, 0])
    : Object.entries(given as Readonly<Record<string, number>>).map(([i, v]) => [i.trim() === '' ? Number.NaN : Number(i), v])
  if (entries.length === 0) throw new EditError(`The edit ${label} names no latents; name at least one, or leave 'latents' out.`)
  for (const [i, v] of entries) {
    if (!Number.isInteger(i) || i < 0 || i >= sae.dSae)
      throw new EditError(`The edit ${label} names the latent ${i}, but the autoencoder has latents 0 to ${sae.dSae - 1}.`)
    if (typeof v !== 'number' || !Number.isFinite(Math.fround(v)))
      throw new EditError(`The edit ${label} gives latent ${i} the value ${JSON.stringify(v)}, which is not a finite number of float32.`)
  }
  const indices = entries.map(([i]) => i)
  if (new Set(indices).size !== indices.length) throw new EditError(`The edit ${label} names a latent twice; name each once.`)
  return { indices, values: Float32Array.from(entries, ([, v]) => v), mode }
}
