/** @file Parameters: named arrays, and the scope in which modules declare them while they are traced. */
import { listed, nearest, ShapeError, UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { sizeOf } from '../base/types.ts'
import { input, type Tensor } from '../tensor/index.ts'
import type { Initialiser } from './initialisers.ts'
import { RandomStream } from './random.ts'

/** One parameter in memory, float32, row-major. */
export type Parameter = NDArray<Float32Array>

/** Parameters by name, in the order in which they were declared. */
export class ParameterSet implements Iterable<readonly [string, Parameter]> {
  private readonly entries = new Map<string, Parameter>()

  /** A set of given arrays, which it keeps and training changes in place. */
  static from(arrays: Readonly<Record<string, NDArray>>): ParameterSet {
    const set = new ParameterSet()
    for (const [name, array] of Object.entries(arrays)) set.add(name, array)
    return set
  }

  /** Adds a parameter; refuses a name that is taken and values that are not float32. */
  add(name: string, { dtype, shape, data }: NDArray): void {
    if (this.entries.has(name)) throw new UsageError(`There are two parameters called '${name}'; rename one.`)
    if (!(data instanceof Float32Array))
      throw new ShapeError(`The parameter '${name}' is ${dtype}, but parameters are trained in float32; convert it.`)
    if (data.length !== sizeOf(shape))
      throw new ShapeError(`The parameter '${name}' of shape [${shape.join(', ')}] has ${data.length} values, not ${sizeOf(shape)}.`)
    this.entries.set(name, { dtype: 'float32', shape: [...shape], data })
  }

  /** Whether there is a parameter of this name. */
  has(name: string): boolean {
    return this.entries.has(name)
  }

  /** A parameter by name. */
  get(name: string): Parameter {
    const found = this.entries.get(name)
    if (found) return found
    const near = nearest(name, this.entries.keys())
    throw new UsageError(
      `There is no parameter '${name}'${near ? `; did you mean '${near}'?` : `; there are ${listed(this.entries.keys()) || 'none'}.`}`,
    )
  }

  /** Names, in order. */
  get names(): string[] {
    return [...this.entries.keys()]
  }

  /** Number of values in all parameters. */
  get count(): number {
    let sum = 0
    for (const p of this.entries.values()) sum += p.data.length
    return sum
  }

  [Symbol.iterator](): IterableIterator<readonly [string, Parameter]> {
    return this.entries[Symbol.iterator]()
  }

  /** Copies of all values, for a checkpoint or a comparison. */
  copy(): Record<string, Parameter> {
    return Object.fromEntries([...this].map(([name, p]) => [name, { ...p, data: p.data.slice() }]))
  }

  /** Writes values into the arrays that are here; names and shapes must be the same. */
  load(arrays: Readonly<Record<string, NDArray>>): void {
    const [missing, extra] = [this.names.filter((n) => !(n in arrays)), Object.keys(arrays).filter((n) => !this.entries.has(n))]
    if (missing.length > 0 || extra.length > 0)
      throw new UsageError(
        `These are not the parameters of this model: ${missing.length > 0 ? `${listed(missing)} missing` : ''}${missing.length > 0 && extra.length > 0 ? ', ' : ''}${extra.length > 0 ? `${listed(extra)} unknown` : ''}; use the model that they were saved from.`,
      )
    for (const [name, p] of this) {
      const { shape, data } = arrays[name] as NDArray
      if (shape.join() !== p.shape.join())
        throw new ShapeError(`The parameter '${name}' has shape [${p.shape.join(', ')}], but [${shape.join(', ')}] was given.`)
      p.data.set(data as Float32Array)
    }
  }
}

/** The name of the program input that a parameter is fed under. */
export const parameterInput = (name: string) => `param:${name}`

/** How a scope hands out parameters: as they are, or changed on the way into the model. */
export type ParameterView = (name: string, shape: readonly number[]) => Tensor

const plainView: ParameterView = (name, shape) => input(parameterInput(name), 'float32', shape)

/**
 * The place where modules declare their parameters: the first trace creates them in the set, later traces read them. One
 * name is one tensor, so that asking twice ties weights.
 */
export class Scope {
  private readonly parameters: ParameterSet
  private readonly seed: number
  private readonly prefix: string
  private readonly view: ParameterView
  private readonly traced: Map<string, Tensor>

  constructor(
    parameters: ParameterSet,
    options: { seed?: number; view?: ParameterView } = {},
    inherited?: { prefix: string; traced: Map<string, Tensor> },
  ) {
    this.parameters = parameters
    this.seed = options.seed ?? 0
    this.view = options.view ?? plainView
    this.prefix = inherited?.prefix ?? ''
    this.traced = inherited?.traced ?? new Map()
  }

  /** A scope whose names begin with `name.`. */
  in(name: string): Scope {
    return new Scope(this.parameters, { seed: this.seed, view: this.view }, { prefix: `${this.prefix}${name}.`, traced: this.traced })
  }

  /** The traced value of a parameter, which is created with these first values where it does not exist yet. */
  parameter(name: string, shape: readonly number[], initialiser: Initialiser): Tensor {
    const full = `${this.prefix}${name}`
    if (!this.parameters.has(full)) {
      const data = initialiser(shape, RandomStream.named(this.seed, full))
      this.parameters.add(full, { dtype: 'float32', shape, data })
    }
    const own = this.parameters.get(full).shape
    if (own.join() !== shape.join())
      throw new ShapeError(`The parameter '${full}' has shape [${own.join(', ')}], but the model asks for [${shape.join(', ')}].`)
    const known = this.traced.get(full)
    if (known) return known
    const tensor = this.view(full, shape)
    this.traced.set(full, tensor)
    return tensor
  }

  /** Names that have been traced, in order. */
  get names(): string[] {
    return [...this.traced.keys()]
  }
}
