/** @file A sparse autoencoder as data: its kind, its settings, its weights, and what its file says about where it belongs. */
import { FormatError, listed, ShapeError, UsageError } from '../../base/errors.ts'
import { type NDArray, sizeOf } from '../../base/types.ts'

/**
 * How pre-activations z become activations of latents: `standard` ReLU(z) · `topk` the k largest of a position, then ReLU · `abstopk`
 * the k largest by size, with their sign · `jumprelu` z where it exceeds its threshold · `gated` a gate chooses, another bias measures ·
 * `groupmax` the largest of each of k groups. BatchTopK and Matryoshka autoencoders are `jumprelu` once trained.
 */
export type SaeKind = 'standard' | 'topk' | 'abstopk' | 'jumprelu' | 'gated' | 'groupmax'

/**
 * What is done to an input before it is encoded and undone after decoding (SAELens' `normalize_activations`). The last two act only
 * once a known factor is folded into the weights, see {@link foldScale}.
 */
export type SaeNormalize = 'none' | 'layer_norm' | 'constant_norm_rescale' | 'expected_average_only_in' | 'covariance_whitening'

/** The weights of a sparse autoencoder or transcoder, with everything that its numbers depend on. */
export interface SaeWeights {
  readonly kind: SaeKind
  /** Width of what is encoded; heads are flat. */
  readonly dIn: number
  /** Number of latents. */
  readonly dSae: number
  /** Width of what is decoded; another site than the input's for a transcoder. */
  readonly dOut: number
  /** Latents that may be active at a position, of topk, abstopk and groupmax. */
  readonly k?: number
  /** b_dec is subtracted before encoding. */
  readonly subtractsBias: boolean
  readonly normalize: SaeNormalize
  /** Pre-activations are multiplied by the lengths of decoder rows, and activations divided by them before decoding (SAELens' `rescale_acts_by_decoder_norm`). */
  readonly rescales: boolean
  /** It maps one place to another, so that normalisation of the input is not undone. */
  readonly transcoder: boolean
  /**
   * float32 by SAELens' names: W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_out], b_dec [d_out]; jumprelu: threshold [d_sae];
   * gated: b_gate, b_mag, r_mag [d_sae] instead of b_enc; perhaps W_skip [d_out, d_in].
   */
  readonly tensors: Readonly<Record<string, NDArray<Float32Array>>>
  /** Where it reads and, for a transcoder, writes, as the file names it: `blocks.8.hook_resid_pre`, `resid_post.3`. */
  readonly hook?: string
  readonly hookOut?: string
  /** The model that it was trained on, as the file names it. */
  readonly model?: string
  /** Folder or hub id that it was read from. */
  readonly source?: string
  /** The format that it was read from. */
  readonly format?: string
  /** What else the file says: SAELens' metadata, a trainer's configuration. */
  readonly metadata: Readonly<Record<string, unknown>>
  /** What a user should know before trusting the numbers, as sentences. */
  readonly warnings: readonly string[]
}

/** Tensors of each kind besides W_enc, W_dec and b_dec. */
const more: Readonly<Record<SaeKind, readonly string[]>> = {
  standard: ['b_enc'],
  topk: ['b_enc'],
  abstopk: ['b_enc'],
  groupmax: ['b_enc'],
  jumprelu: ['b_enc', 'threshold'],
  gated: ['b_gate', 'b_mag', 'r_mag'],
}

/** Kinds whose latents are each computed from their own column alone, so that a few can be had without the others. */
export const columnwise: ReadonlySet<SaeKind> = new Set<SaeKind>(['standard', 'jumprelu', 'gated'])

/** Kinds that keep k latents of a position. */
export const keepsK: ReadonlySet<SaeKind> = new Set<SaeKind>(['topk', 'abstopk', 'groupmax'])

/** Fields of {@link saeWeights}; sizes are read off the tensors. */
export type SaeParts = Omit<SaeWeights, 'dIn' | 'dSae' | 'dOut' | 'metadata' | 'warnings' | 'transcoder' | 'rescales' | 'normalize'> &
  Partial<Pick<SaeWeights, 'metadata' | 'warnings' | 'transcoder' | 'rescales' | 'normalize'>>

/**
 * Checked weights: every tensor is there, fits the others, and holds finite numbers.
 * @param what names the file in a refusal.
 */
export function saeWeights(parts: SaeParts, what = 'This autoencoder'): SaeWeights {
  const { tensors, kind } = parts
  const [enc, dec] = [tensors.W_enc, tensors.W_dec]
  const needed = ['W_enc', 'W_dec', 'b_dec', ...more[kind]]
  const missing = needed.filter((n) => !tensors[n])
  if (missing.length > 0 || !enc || !dec)
    throw new FormatError(`${what} lacks ${listed(missing)}, which a ${kind} autoencoder needs; it holds ${listed(Object.keys(tensors))}.`)
  const unknown = Object.keys(tensors).filter((n) => !needed.includes(n) && n !== 'W_skip')
  if (unknown.length > 0)
    throw new FormatError(`${what} holds ${listed(unknown)}, which a ${kind} autoencoder has no use for; its kind must be another.`)
  const [dIn, dSae] = enc.shape as [number, number]
  const dOut = dec.shape[1] as number
  const vector = (n: string) => (n === 'b_dec' ? [dOut] : [dSae])
  const shapes: Record<string, readonly number[]> = { W_enc: [dIn, dSae], W_dec: [dSae, dOut], W_skip: [dOut, dIn] }
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    const wanted = shapes[name] ?? vector(name)
    if (shape.join() !== wanted.join() || data.length !== sizeOf(wanted) || sizeOf(wanted) === 0)
      throw new ShapeError(
        `${what} has ${name} of shape [${shape.join(', ')}] where [${wanted.join(', ')}] is needed; its files do not belong together.`,
      )
    const bad = data.findIndex((v) => !Number.isFinite(v))
    if (bad >= 0) throw new FormatError(`${what} has ${data[bad]} in ${name}, which is not a finite number; fetch it again.`)
  }
  const { k } = parts
  if (keepsK.has(kind) && !(Number.isInteger(k) && (k as number) > 0 && (k as number) <= dSae))
    throw new FormatError(`${what} keeps k = ${k} latents of ${dSae}, which is no whole number from 1 to ${dSae}.`)
  if (kind === 'groupmax' && dSae % (k as number) !== 0)
    throw new FormatError(`${what} has ${dSae} latents, which do not make ${k} equal groups.`)
  const transcoder = parts.transcoder ?? (dIn !== dOut || tensors.W_skip !== undefined)
  if (transcoder && parts.subtractsBias)
    throw new FormatError(`${what} is a transcoder and subtracts b_dec from its input, which is of another site.`)
  return { normalize: 'none', rescales: false, metadata: {}, warnings: [], ...parts, transcoder, dIn, dSae, dOut }
}

/** Whether a value is weights of an autoencoder. */
export function isSaeWeights(value: unknown): value is SaeWeights {
  return typeof value === 'object' && value !== null && 'kind' in value && 'dSae' in value && 'tensors' in value
}

const map = (x: NDArray<Float32Array>, change: (v: number, i: number) => number): NDArray<Float32Array> => ({
  ...x,
  data: x.data.map(change),
})
const tensorOf = (sae: SaeWeights, name: string) => sae.tensors[name] as NDArray<Float32Array>

/** Lengths of the decoder rows, [d_sae]. */
export function decoderNorms(sae: SaeWeights): Float32Array {
  const { data } = tensorOf(sae, 'W_dec')
  return Float32Array.from({ length: sae.dSae }, (_, i) => {
    let sum = 0
    for (let j = i * sae.dOut; j < (i + 1) * sae.dOut; j++) sum += (data[j] as number) ** 2
    return Math.sqrt(sum)
  })
}

/**
 * The same function of raw activations for an autoencoder that was trained on `scale` times them: W_enc · scale, W_dec / scale,
 * b_dec / scale; b_enc and thresholds stay (Anthropic, April 2024; SAELens' `fold_activation_norm_scaling_factor`).
 */
export function foldScale(sae: SaeWeights, scale: number): SaeWeights {
  if (!(Number.isFinite(scale) && scale > 0)) throw new UsageError(`A scale of activations must be a positive number, not ${scale}.`)
  // Thresholds are compared with values that the lengths of decoder rows multiply, and those change with the scale.
  if (sae.rescales) return foldScale(foldDecoderNorms(sae), scale)
  const { W_enc, W_dec, b_dec, ...rest } = sae.tensors as Record<'W_enc' | 'W_dec' | 'b_dec', NDArray<Float32Array>>
  const tensors = {
    ...rest,
    W_enc: map(W_enc, (v) => v * scale),
    W_dec: map(W_dec, (v) => v / scale),
    b_dec: map(b_dec, (v) => v / scale),
  }
  return saeWeights({ ...sae, normalize: 'none', warnings: [], tensors })
}

/**
 * The same reconstruction from decoder rows of length one: latents are multiplied by the lengths, and thresholds with them.
 * Refuses kinds whose choice of latents would change, unless they rescale already.
 */
export function foldDecoderNorms(sae: SaeWeights): SaeWeights {
  if (!columnwise.has(sae.kind) && !sae.rescales)
    throw new UsageError(`Decoder norms of a ${sae.kind} autoencoder cannot be folded: another ${sae.k} latents would be kept.`)
  const norms = decoderNorms(sae)
  const dead = norms.indexOf(0)
  if (dead >= 0) throw new UsageError(`Decoder norms cannot be folded: row ${dead} of W_dec is zero.`)
  const by = (v: number, i: number) => v * (norms[i] as number)
  const tensors: Record<string, NDArray<Float32Array>> = { ...sae.tensors }
  tensors.W_enc = map(tensorOf(sae, 'W_enc'), (v, i) => by(v, i % sae.dSae))
  tensors.W_dec = map(tensorOf(sae, 'W_dec'), (v, i) => v / (norms[Math.floor(i / sae.dOut)] as number))
  // A threshold of one that rescales is already compared with the rescaled value; r_mag is a factor on what is scaled already.
  for (const name of ['b_enc', 'b_gate', 'b_mag', ...(sae.rescales ? [] : ['threshold'])])
    if (tensors[name]) tensors[name] = map(tensors[name], by)
  return saeWeights({ ...sae, rescales: false, tensors })
}
