/** @file From the tensors of a checkpoint to weights that the engine maps. */
import { listed, ModelError, nearest, throwIfCancelled } from '../base/errors.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { NDArray } from '../base/types.ts'
import { input, type Tensor, type WeightRef, weight, weightBytes } from '../tensor/index.ts'
import type { WeightStore } from './formats/index.ts'
import type { DecoderSpec } from './spec.ts'
import type { Parameters } from './trunks/decoder.ts'

/** Tensors that checkpoints carry and no model reads: buffers that older versions saved. */
const buffers = [/rotary_emb\.inv_freq$/, /\.attn\.(bias|masked_bias)$/, /\.attention\.(bias|masked_bias)$/]

/** Prefixes that some checkpoints leave out or add. */
const prefixes = ['', 'transformer.', 'model.']

/** What a record says about the tensors of its checkpoint. */
export type ReadSpec = Pick<DecoderSpec, 'family' | 'foreign' | 'otherNames'> &
  Partial<Pick<DecoderSpec, 'head' | 'embedding'>> & {
    /** The checkpoint's name of a parameter that the reference calls so in memory. */
    readonly storedName?: (name: string) => string
  }

/** The weights of a model, by the names that its family uses. */
export class ModelWeights {
  /** By the names in the checkpoint. */
  readonly refs: ReadonlyMap<string, WeightRef>
  private readonly used = new Set<string>()
  /** What to call the checkpoint in a message. */
  readonly name: string
  /** Bytes of all weights. */
  readonly bytes: number

  constructor(name: string, refs: ReadonlyMap<string, WeightRef>) {
    this.name = name
    this.refs = refs
    this.bytes = [...refs.values()].reduce((sum, r) => sum + weightBytes(r), 0)
  }

  /** A weight of the given shape, by one of its names; refuses a missing one and another shape. */
  ref(name: string, shape: readonly number[], otherNames: readonly string[] = []): WeightRef {
    const found = [name, ...otherNames].map((n) => this.nameOf(n)).find((n) => n !== undefined)
    if (!found) {
      const near = nearest(name, this.refs.keys())
      throw new ModelError(
        `${this.name} has no tensor '${name}'${near ? `; the nearest name is '${near}'` : ''}. Config and weights may belong to different models.`,
      )
    }
    const ref = this.refs.get(found) as WeightRef
    this.used.add(found)
    if (ref.shape.length !== shape.length || ref.shape.some((n, i) => n !== shape[i]))
      throw new ModelError(
        `The tensor '${found}' of ${this.name} has shape [${ref.shape.join(', ')}], but the config asks for [${shape.join(', ')}]; config and weights belong to different models.`,
      )
    return ref
  }

  /** The name under which the checkpoint has a tensor of the family's name. */
  nameOf(name: string): string | undefined {
    if (this.refs.has(name)) return name
    for (const p of prefixes) {
      if (this.refs.has(p + name)) return p + name
      if (p && name.startsWith(p) && this.refs.has(name.slice(p.length))) return name.slice(p.length)
    }
    return undefined
  }

  /** Names that were never asked for, of tensors that are the model's. */
  unused(spec: ReadSpec): string[] {
    // With tied weights, a separate unembedding in the file is a copy.
    const copies = spec.head !== undefined && spec.head.weight === spec.embedding ? ['lm_head.weight'] : []
    const foreign = (n: string) => spec.foreign?.some((f) => n.startsWith(f)) === true
    return [...this.refs.keys()].filter((n) => !this.used.has(n) && !buffers.some((b) => b.test(n)) && !copies.includes(n) && !foreign(n))
  }

  /** Refuses a checkpoint with tensors that the model does not read. */
  checkAllRead(spec: ReadSpec): void {
    const rest = this.unused(spec)
    if (rest.length > 0)
      throw new ModelError(
        `${this.name} holds ${rest.length} tensors that the family '${spec.family}' does not read (${listed(rest, 4)}); the numbers would be wrong without them.`,
      )
  }
}

/** What comes with the parameters of a trunk. */
export interface ComputedParts {
  /** Values of inputs that never change. */
  readonly feeds: Readonly<Record<string, NDArray>>
  /** The leaf of a weight that was asked for, by its name in the checkpoint. */
  byName(name: string): Tensor | undefined
}

/** Parameters of a trunk, from weights and computed tables; `feeds` are the values of inputs that never change, known once a trunk was traced. */
export function parametersOf(spec: ReadSpec, weights: ModelWeights, contextLength: number): Parameters & ComputedParts {
  const made = new Map<string, Tensor>()
  const get = (name: string, shape: readonly number[]) => {
    const ref = weights.ref(name, shape, spec.otherNames?.(name))
    let t = made.get(ref.name)
    if (!t) {
      t = weight(ref)
      made.set(ref.name, t)
    }
    return t
  }
  const feeds: Record<string, NDArray> = {}
  const tables = new Map<string, Tensor>()
  // Inputs rather than weights: the runtime wants the external data of one program all in files or all in memory.
  const table = (name: string, shape: readonly number[], data: Float32Array) => {
    let t = tables.get(name)
    if (!t) {
      t = input(name, 'float32', shape)
      tables.set(name, t)
      feeds[name] = { dtype: 'float32', shape, data }
    }
    return t
  }
  const byName = (name: string) => {
    // Hugging Face calls the unembedding so, whatever the checkpoint does.
    const found =
      weights.nameOf(name) ??
      weights.nameOf(spec.storedName?.(name) ?? name) ??
      (name === 'lm_head.weight' ? spec.head && weights.nameOf(spec.head.weight) : undefined)
    return made.get(found ?? name)
  }
  return { get, table, contextLength, feeds, byName }
}

/** Writes tensors as float32 into files and says where each lies. */
export type Convert = (store: WeightStore, names: readonly string[]) => Promise<ReadonlyMap<string, { path: string; offset: number }>>

/**
 * Weights as float32 in place: tensors that are stored so are mapped where they lie, others are converted.
 * @param convert writes converted tensors to a file and says where each lies; in memory when absent.
 */
export async function weightsOf(
  store: WeightStore,
  options: WorkOptions & { readonly convert?: Convert | undefined },
): Promise<ModelWeights> {
  const refs = new Map<string, WeightRef>()
  const toConvert: string[] = []
  for (const t of store.tensors.values()) {
    if (t.type === 'F32' && t.source.path !== undefined)
      refs.set(t.name, { name: t.name, dtype: 'float32', shape: t.shape, place: { path: t.source.path, offset: t.offset, bytes: t.bytes } })
    else if (!/^(I|U|BOOL)/.test(t.type) || /^IQ/.test(t.type)) toConvert.push(t.name)
  }
  const places = toConvert.length > 0 && options.convert ? await options.convert(store, toConvert) : undefined
  for (const name of toConvert) {
    throwIfCancelled(options.signal)
    const t = store.get(name)
    const bytes = t.shape.reduce((p, n) => p * n, 4)
    const place = places?.get(name)
    if (place) refs.set(name, { name, dtype: 'float32', shape: t.shape, place: { ...place, bytes } })
    else {
      const values = await store.readFloat32(name)
      refs.set(name, {
        name,
        dtype: 'float32',
        shape: t.shape,
        place: { data: new Uint8Array(values.buffer, values.byteOffset, values.byteLength), key: `${store.name}/${name}` },
      })
    }
  }
  return new ModelWeights(store.name, refs)
}
