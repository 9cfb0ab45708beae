/** @file A checkpoint that is being changed: its config, its record, and its tensors by the family's names. */
import { ModelError } from '../../base/errors.ts'
import type { Config } from '../config.ts'
import { recordOf } from '../families/index.ts'
import { type StoredTensor, WeightStore } from '../formats/index.ts'
import type { DecoderSpec, Linear } from '../spec.ts'
import { storedName } from '../weights.ts'
import { derivedTensor } from './derived.ts'
import { held, type LazyVector, leftProduct, type Matrix, plusProduct, rightProduct, scaled, stored, valuesOf, within } from './matrix.ts'

/** A model as its files say: what is changed, and what a change gives. */
export interface Checkpoint {
  readonly config: Config
  readonly store: WeightStore
  /** Reads the config as another family's than it says. */
  readonly family?: string | undefined
}

interface Entry {
  readonly shape: readonly number[]
  readonly matrix: Matrix
  /** The tensor itself, as long as nothing was changed. */
  readonly stored?: StoredTensor
}

/** Reads and changes a checkpoint; nothing is computed before the result is read. Decoders only. */
export class Draft {
  private readonly store: WeightStore
  private readonly family: string | undefined
  private readonly entries = new Map<string, Entry>()
  /** Vectors as they were before they were first changed. */
  private readonly before = new Map<string, Entry>()
  private current: Config
  private record: DecoderSpec

  constructor({ config, store, family }: Checkpoint) {
    this.store = store
    this.family = family
    this.current = config
    this.record = this.specOf(config)
    for (const t of store.tensors.values()) this.entries.set(t.name, { shape: t.shape, matrix: stored(t), stored: t })
  }

  get config(): Config {
    return this.current
  }

  /** The record that the config gives. */
  get spec(): DecoderSpec {
    return this.record
  }

  /** Sets fields of the config and reads its record anew. */
  configure(changes: Config): void {
    this.current = { ...this.current, ...changes }
    this.record = this.specOf(this.current)
  }

  /** The record of another config. */
  specOf(config: Config): DecoderSpec {
    const { kind, spec } = recordOf(config, this.family)
    if (kind !== 'decoder')
      throw new ModelError(`Weights of decoder-only language models are transformed; '${spec.family}' is of another kind (${kind}).`)
    return spec
  }

  /** Names of all tensors, as the checkpoint has them. */
  get names(): string[] {
    return [...this.entries.keys()]
  }

  has(name: string): boolean {
    return this.find(name) !== undefined
  }

  shape(name: string): readonly number[] {
    return this.entry(name).shape
  }

  matrix(name: string): Matrix {
    return this.entry(name).matrix
  }

  /** The values of a vector, read now. */
  vector(name: string): Promise<Float32Array> {
    return valuesOf(this.matrix(name))
  }

  /** Puts a tensor, new or instead of one that is there. */
  put(name: string, shape: readonly number[], matrix: Matrix): void {
    this.entries.set(this.find(name) ?? name, { shape, matrix })
  }

  putVector(name: string, values: Float32Array): void {
    const found = this.find(name)
    if (found !== undefined && !this.before.has(name)) this.before.set(name, this.entries.get(found) as Entry)
    this.put(name, [values.length], held(values, values.length))
  }

  /** All vectors that were changed, as they were, for an inverse. */
  async vectorsBefore(): Promise<Record<string, Float32Array>> {
    return Object.fromEntries(
      await Promise.all([...this.before].map(async ([name, { matrix }]) => [name, await valuesOf(matrix)] as const)),
    )
  }

  /** Puts back what {@link vectorsBefore} gave. */
  putBack(vectors: unknown): void {
    for (const [name, values] of Object.entries(vectors as Record<string, Float32Array>)) this.putVector(name, values)
  }

  remove(name: string): void {
    this.entries.delete(this.find(name) as string)
  }

  /** Renames all tensors, and drops those for which there is no name. */
  rename(newName: (name: string) => string | undefined): void {
    const old = [...this.entries]
    this.entries.clear()
    for (const [name, entry] of old) {
      const to = newName(name)
      if (to !== undefined) this.entries.set(to, entry)
    }
  }

  /** Changes the matrix of a linear layer; of a stack only its own item. */
  change({ weight, item }: Linear, change: (m: Matrix) => Matrix): void {
    const { shape, matrix } = this.entry(weight)
    const rows = matrix.rows / (item?.of ?? 1)
    this.put(weight, shape, item ? within(matrix, item.at * rows, rows, change) : change(matrix))
  }

  /** The matrix of a linear layer. */
  matrixOf({ weight, item }: Linear): Matrix {
    const { matrix } = this.entry(weight)
    if (!item) return matrix
    const rows = matrix.rows / item.of
    return { rows, columns: matrix.columns, read: (from, count) => matrix.read(item.at * rows + from, count) }
  }

  /** Multiplies what a linear layer reads, or what it writes, coordinate by coordinate. */
  scale(l: Linear, side: 'in' | 'out', factors: Float32Array): void {
    this.change(l, (m) => scaled(m, axisOf(l, side), factors))
  }

  /** Takes a direction of unit length out of what a linear layer writes: W − d·(dᵀW), and the same of its bias. */
  async project(l: Linear, direction: Float32Array): Promise<void> {
    const minus = async () => direction.map((v) => -v)
    this.change(l, (m) =>
      axisOf(l, 'out') === 'rows' ? plusProduct(m, minus, leftProduct(m, direction)) : plusProduct(m, rightProduct(m, direction), minus),
    )
    if (!l.bias) return
    const bias = await this.vector(l.bias)
    const along = bias.reduce((sum, v, i) => sum + v * (direction[i] as number), 0)
    this.putVector(
      l.bias,
      bias.map((v, i) => v - along * (direction[i] as number)),
    )
  }

  /** What a linear layer makes of a constant input, without its bias. */
  applied(l: Linear, x: Float32Array): LazyVector {
    const m = this.matrixOf(l)
    return axisOf(l, 'out') === 'rows' ? rightProduct(m, x) : leftProduct(m, x)
  }

  /** Adds to the bias of a linear layer that has one. */
  async shift({ bias }: Linear, by: Float32Array): Promise<void> {
    const values = await this.vector(bias as string)
    this.putVector(
      bias as string,
      values.map((v, i) => v + (by[i] as number)),
    )
  }

  /** Gives the unembedding a matrix of its own where it is the embedding's; says whether it was. */
  untie(): boolean {
    const { head, embedding } = this.record
    if (head.weight !== embedding) return false
    const { shape, matrix } = this.entry(embedding)
    this.configure({ tie_word_embeddings: false })
    const name = this.record.head.weight
    if (name === embedding)
      throw new ModelError(
        `The family '${this.record.family}' always uses its embedding as unembedding, and this transform would need two different ones.`,
      )
    this.put(name, shape, matrix)
    return true
  }

  /** The changed checkpoint; `recipe` tells it from others made of the same files. */
  finish(recipe: string): Checkpoint {
    const { store } = this
    const sources = [...new Set([...store.tensors.values()].map((t) => t.source))]
    const tensors = [...this.entries].map(([name, { shape, matrix, stored: t }]) =>
      t ? { ...t, name } : derivedTensor(name, shape, matrix, { recipe, of: sources }),
    )
    const changed = new WeightStore({ format: store.format, name: store.name, metadata: store.metadata, sources: [], tensors })
    return { config: this.current, store: changed, ...(this.family === undefined ? {} : { family: this.family }) }
  }

  private entry(name: string): Entry {
    const found = this.find(name)
    if (found === undefined) throw new ModelError(`${this.store.name} has no tensor '${name}', which this transform needs.`)
    return this.entries.get(found) as Entry
  }

  private find(name: string): string | undefined {
    return storedName(name, this.record, (n) => this.entries.has(n))
  }
}

/** Which axis of the stored matrix a side of a linear layer is. */
export const axisOf = ({ layout }: Linear, side: 'in' | 'out'): 'rows' | 'columns' =>
  (layout === 'out,in') === (side === 'out') ? 'rows' : 'columns'
