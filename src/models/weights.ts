/** @file From the tensors of a checkpoint to weights that the engine maps. */
import { listed, ModelError, nearest, throwIfCancelled } from '../base/errors.ts'
import type { WorkOptions } from '../base/progress.ts'
import { bytesOf, type NDArray, sizeOf } from '../base/types.ts'
import { cast, input, type Tensor, type WeightPlace, type WeightRef, weight, weightBytes } from '../tensor/index.ts'
import { f32ToF16, type StoredTensor, type WeightStore } from './formats/index.ts'
import { type BlockWeight, blockRefs, blockTensor, type Precision, planPacking, sectionsOf } from './quantised.ts'
import type { DecoderSpec } from './spec.ts'
import type { Parameters } from './trunks/decoder.ts'

/** Tensors that checkpoints carry and no model reads: buffers that older versions saved. */
export const buffers = [/rotary_emb\.inv_freq$/, /\.attn\.(bias|masked_bias)$/, /\.attention\.(bias|masked_bias)$/]

/** Prefixes that some checkpoints leave out or add. */
const prefixes = ['', 'transformer.', 'model.']

/** The name under which a checkpoint has a tensor of the family's name. */
function nameIn(name: string, has: (name: string) => boolean): string | undefined {
  if (has(name)) return name
  for (const p of prefixes) {
    if (has(p + name)) return p + name
    if (p && name.startsWith(p) && has(name.slice(p.length))) return name.slice(p.length)
  }
  return undefined
}

/** The name under which a checkpoint has what a record calls so, by that name or one of its others. */
export const storedName = (name: string, spec: Pick<ReadSpec, 'otherNames'>, has: (name: string) => boolean): string | undefined =>
  [name, ...(spec.otherNames?.(name) ?? [])].map((n) => nameIn(n, has)).find((n) => n !== undefined)

/** What a record says about the tensors of its checkpoint. */
export type ReadSpec = Pick<DecoderSpec, 'family' | 'foreign' | 'otherNames'> &
  Partial<Pick<DecoderSpec, 'head' | 'embedding'>> & {
    /** The checkpoint's name of a parameter that the reference calls so in memory. */
    readonly storedName?: (name: string) => string
  }

/** What a load knows of its weights besides the references. */
export interface WeightFacts {
  /** Matrices that are packed in blocks, by the names in the checkpoint. */
  readonly blocks?: ReadonlyMap<string, BlockWeight>
  /** Number format that was asked for (default `f32`). */
  readonly precision?: Precision
  /** Sentences on what was kept and what was rounded. */
  readonly checks?: readonly string[]
}

/** The weights of a model, by the names that its family uses. */
export class ModelWeights {
  /** Weights that are not in blocks, by the names in the checkpoint. */
  readonly refs: ReadonlyMap<string, WeightRef>
  /** Matrices that are packed in blocks, by the names in the checkpoint. */
  readonly blocks: ReadonlyMap<string, BlockWeight>
  readonly precision: Precision
  /** Sentences on what was kept and what was rounded. */
  readonly checks: readonly string[]
  private readonly used = new Set<string>()
  /** What to call the checkpoint in a message. */
  readonly name: string
  /** Bytes of all weights. */
  readonly bytes: number

  constructor(name: string, refs: ReadonlyMap<string, WeightRef>, facts: WeightFacts = {}) {
    this.name = name
    this.refs = refs
    this.blocks = facts.blocks ?? new Map()
    this.precision = facts.precision ?? 'f32'
    this.checks = facts.checks ?? []
    this.bytes = [...refs.values(), ...[...this.blocks.values()].flatMap(blockRefs)].reduce((sum, r) => sum + weightBytes(r), 0)
  }

  /** Names of all weights. */
  get names(): string[] {
    return [...this.refs.keys(), ...this.blocks.keys()]
  }

  /** A weight of the given shape, by one of its names; refuses a missing one and another shape. */
  find(name: string, shape: readonly number[], otherNames: readonly string[] = []): WeightRef | BlockWeight {
    const found = [name, ...otherNames].map((n) => this.nameOf(n)).find((n) => n !== undefined)
    if (!found) {
      const near = nearest(name, this.names)
      throw new ModelError(
        `${this.name} has no tensor '${name}'${near ? `; the nearest name is '${near}'` : ''}. Config and weights may belong to different models.`,
      )
    }
    const ref = (this.refs.get(found) ?? this.blocks.get(found)) as WeightRef | BlockWeight
    this.used.add(found)
    if (ref.shape.length !== shape.length || ref.shape.some((n, i) => n !== shape[i]))
      throw new ModelError(
        `The tensor '${found}' of ${this.name} has shape [${ref.shape.join(', ')}], but the config asks for [${shape.join(', ')}]; config and weights belong to different models.`,
      )
    return ref
  }

  /** The name under which the checkpoint has a tensor of the family's name. */
  nameOf(name: string): string | undefined {
    return nameIn(name, (n) => this.refs.has(n) || this.blocks.has(n))
  }

  /** Names that were never asked for, of tensors that are the model's. */
  unused(spec: ReadSpec): string[] {
    // With tied weights, a separate unembedding in the file is a copy.
    const copies = spec.head !== undefined && spec.head.weight === spec.embedding ? ['lm_head.weight'] : []
    const foreign = (n: string) => spec.foreign?.some((f) => n.startsWith(f)) === true
    return this.names.filter((n) => !this.used.has(n) && !buffers.some((b) => b.test(n)) && !copies.includes(n) && !foreign(n))
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
    const ref = weights.find(name, shape, spec.otherNames?.(name))
    let t = made.get(ref.name)
    if (!t) {
      t = 'packed' in ref ? blockTensor(ref) : ref.dtype === 'float32' ? weight(ref) : cast(weight(ref), 'float32')
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
    if (found !== undefined && weights.blocks.has(found))
      throw new ModelError(
        `'${found}' is packed in ${weights.blocks.get(found)?.layout.bits}-bit blocks, which are frozen: they have no gradient and cannot be edited. Load the model with precision f32.`,
      )
    return made.get(found ?? name)
  }
  return { get, table, contextLength, feeds, byName }
}

/** A run of bytes that is made of a stored tensor. */
export interface Section {
  /** Tells sections of a checkpoint apart: the tensor's name and what is made of it. */
  readonly key: string
  /** Name of the tensor. */
  readonly of: string
  readonly bytes: number
  /** The bytes in order; sections are made in the order in which they are given. */
  readonly pieces: () => AsyncIterable<Uint8Array>
}

/** Writes sections into a file and says where each lies. */
export type Convert = (
  store: WeightStore,
  sections: readonly Section[],
) => Promise<ReadonlyMap<string, { readonly path: string; readonly offset: number }>>

/** Options of {@link weightsOf}. */
export interface WeightOptions extends WorkOptions {
  /** Number format of the matrices (default `f32`). */
  readonly precision?: Precision | undefined
  /** Writes what is not in place to a file; kept in memory when absent. */
  readonly convert?: Convert | undefined
}

/** Values converted at a time. */
const CHUNK = 1 << 20

/** How a tensor is held that is not packed. */
type Held = 'float32' | 'float16' | 'bfloat16'

/** Weights in the precision asked for: tensors that are stored so are mapped where they lie, others are converted. */
export async function weightsOf(store: WeightStore, spec: ReadSpec, options: WeightOptions): Promise<ModelWeights> {
  const { precision = 'f32' } = options
  const nameOf = (name: string) => storedName(name, spec, (n) => store.has(n))
  const plan = precision === 'q8' || precision === 'q4' ? planPacking(store, spec, precision, nameOf) : undefined
  const sections: Section[] = []
  const wanted: ((ref: (key: string, dtype: WeightRef['dtype'], shape: readonly number[], name: string) => WeightRef) => void)[] = []
  const refs = new Map<string, WeightRef>()
  const blocks = new Map<string, BlockWeight>()
  const held = new Map<Held, number>()
  for (const p of plan?.packings ?? []) {
    const made = sectionsOf(store, p)
    sections.push(...made.sections)
    wanted.push((ref) =>
      blocks.set(
        p.tensor.name,
        made.weight((key, dtype, shape) => ref(key, dtype, shape, p.tensor.name)),
      ),
    )
  }
  const packed = new Set(plan?.packings.map((p) => p.tensor))
  for (const t of store.tensors.values()) {
    if (packed.has(t) || (/^(I|U|BOOL)/.test(t.type) && !/^IQ/.test(t.type))) continue
    const dtype = precision === 'f16' ? narrow(t) : 'float32'
    held.set(dtype, (held.get(dtype) ?? 0) + 1)
    if (t.type === typeNames[dtype] && t.source.path !== undefined)
      refs.set(t.name, { name: t.name, dtype, shape: t.shape, place: { path: t.source.path, offset: t.offset, bytes: t.bytes } })
    else {
      const section = floats(store, t, dtype)
      sections.push(section)
      wanted.push((ref) => refs.set(t.name, ref(section.key, dtype, t.shape, t.name)))
    }
  }
  const places = await placesOf(store, sections, options)
  for (const take of wanted) take((key, dtype, shape, name) => ({ name, dtype, shape, place: places(key, bytesOf(dtype, sizeOf(shape))) }))
  const halves = (['float16', 'bfloat16'] as const).filter((d) => held.has(d)).map((d) => `${held.get(d)} matrices are kept as ${d}`)
  return new ModelWeights(store.name, refs, { blocks, precision, checks: [...(plan?.checks ?? []), ...halves] })
}

/** Names of types in files. */
const typeNames: Readonly<Record<Held, string>> = { float32: 'F32', float16: 'F16', bfloat16: 'BF16' }

/** Two bytes for each value of a matrix; vectors are small, and their rounding would touch every value. */
const narrow = (t: StoredTensor): Held => (t.shape.length < 2 ? 'float32' : t.type === 'BF16' ? 'bfloat16' : 'float16')

/** A tensor as floats. */
function floats(store: WeightStore, t: StoredTensor, dtype: Held): Section {
  const { name, shape } = t
  async function* pieces(): AsyncGenerator<Uint8Array> {
    if (t.type === typeNames[dtype]) yield* store.rawChunks(name, CHUNK)
    else
      for await (const values of store.float32Chunks(name, CHUNK)) {
        const out = dtype === 'float16' ? halved(values, name) : values
        yield new Uint8Array(out.buffer, out.byteOffset, out.byteLength)
      }
  }
  return { key: `${name}/${dtype}`, of: name, bytes: bytesOf(dtype, sizeOf(shape)), pieces }
}

function halved(values: Float32Array, name: string): Uint16Array {
  const largest = values.reduce((top, v) => Math.max(top, Math.abs(v)), 0)
  if (largest >= 65520)
    throw new ModelError(`'${name}' holds ${largest}, which float16 cannot; load the model with precision f32, q8 or q4.`)
  return f32ToF16(values)
}

/** Where sections lie: in the file that `convert` writes, or in memory. */
async function placesOf(
  store: WeightStore,
  sections: readonly Section[],
  { convert, signal }: WeightOptions,
): Promise<(key: string, bytes: number) => WeightPlace> {
  if (sections.length > 0 && convert) {
    const places = await convert(store, sections)
    return (key, bytes) => ({ ...(places.get(key) as { path: string; offset: number }), bytes })
  }
  const memory = new Map<string, Uint8Array>()
  for (const { key, bytes, pieces } of sections) {
    throwIfCancelled(signal)
    const data = new Uint8Array(bytes)
    let at = 0
    for await (const piece of pieces()) {
      data.set(piece, at)
      at += piece.byteLength
    }
    memory.set(key, data)
  }
  return (key) => ({ data: memory.get(key) as Uint8Array, key: `${store.name}/${key}` })
}
