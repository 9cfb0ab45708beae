/** @file Steering vectors: values with an algebra, a record of how they were made, and edits that apply them. */
import { EditError, FormatError, listed, ModelError, messageOf, nearest, ShapeError, SiteError, UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import type { Model } from '../run/model.ts'
import { add, addKeepNorm, type DataEdit, rowOf, type SiteInfo, type Where } from '../sites/index.ts'
import type { VectorRecord } from './record.ts'

/** How a vector is applied. */
export interface SteerOptions {
  /** Factor on the vector (default 1); a number that users turn, so it compiles nothing. */
  readonly scale?: number
  /** Where it is added (default everywhere). */
  readonly where?: Where
  /** Only at these of its sites (default all). */
  readonly sites?: readonly string[]
  /** Factors for the first generated token, the second, …; the last one holds on, and the prompt is left alone. */
  readonly schedule?: readonly number[]
  /** Gives each activation the norm that it had before (`normalize` in repeng). */
  readonly keepNorm?: boolean
}

/** Options of {@link SteeringVector.check}. */
export interface CheckOptions {
  /** Use the vector although it was measured on another model; widths must fit all the same. */
  readonly allowOtherModel?: boolean
}

const largestFloat32 = 3.4028234663852886e38

/** One direction for each of one or more sites; immutable. With one site it is an array too: `add('resid_post.3', vector)`. */
export class SteeringVector implements NDArray<Float32Array> {
  /** Directions by canonical site, each as wide as its site: [d_model], or [head · d_head] flat for sites with heads. */
  readonly vectors: ReadonlyMap<string, Float32Array>
  readonly record: VectorRecord

  /**
   * A vector from its directions; what the record says of sites is replaced by what is there.
   * @throws SiteError, ShapeError, UsageError for unknown sites, empty directions, and numbers that are not finite.
   */
  constructor(vectors: Iterable<readonly [site: string, direction: ArrayLike<number>]>, record: VectorRecord) {
    const own = new Map<string, Float32Array>()
    for (const [site, direction] of vectors) own.set(site, checkDirection(site, Float32Array.from(direction)))
    if (own.size === 0) throw new UsageError('A steering vector needs a direction for at least one site.')
    this.vectors = own
    this.record = { ...record, sites: [...own.keys()] }
  }

  /** Canonical names of its sites. */
  get sites(): string[] {
    return [...this.vectors.keys()]
  }

  readonly dtype = 'float32'

  /** The only direction; refuses a vector that has several. */
  get data(): Float32Array {
    if (this.vectors.size > 1)
      throw new UsageError(
        `This vector has ${this.vectors.size} directions (${listed(this.sites)}); use vector.edits(), or name one with at().`,
      )
    return this.at(this.sites[0] as string)
  }

  /** Axes of the only direction. */
  get shape(): readonly number[] {
    return [this.data.length]
  }

  /** The direction at a site; refuses sites that it has none for. */
  at(site: string): Float32Array {
    const found = this.vectors.get(site)
    if (found) return found
    const near = nearest(site, this.vectors.keys())
    throw new SiteError(`This vector has no direction at '${site}'${near ? `; did you mean '${near}'?` : ''} It has ${listed(this.sites)}.`)
  }

  /** Euclidean length of each direction. */
  get norms(): ReadonlyMap<string, number> {
    return this.map((v) => norm(v))
  }

  /** The same directions at some of the sites. */
  only(sites: readonly string[]): SteeringVector {
    return new SteeringVector(
      sites.map((s) => [s, this.at(s)] as const),
      this.record,
    )
  }

  /** `this + other`, site by site; a site that only one has is kept as it is. */
  plus(other: SteeringVector): SteeringVector {
    return this.combined(other, 1)
  }

  /** `this - other`, site by site; a site that only one has enters with its sign. */
  minus(other: SteeringVector): SteeringVector {
    return this.combined(other, -1)
  }

  /** `factor · this`. */
  times(factor: number): SteeringVector {
    if (!Number.isFinite(factor)) throw new UsageError(`A vector cannot be multiplied by ${factor}; give a finite number.`)
    const parts = partsOf(this.record).map((p) => ({ ...p, factor: p.factor * factor }))
    return new SteeringVector(
      this.map((v) => v.map((x) => x * factor)),
      derived('combination', parts, this.record),
    )
  }

  /** The same directions with Euclidean length `length` (default 1) each; refuses a zero direction. */
  normalized(length = 1): SteeringVector {
    return this.transformed('normalized', [this], (v, site) => v.map((x) => (x * length) / nonZero(v, site)))
  }

  /** What of it is orthogonal to another vector, at each of its sites; the other must have them all. */
  orthogonalTo(other: SteeringVector): SteeringVector {
    return this.transformed('orthogonal', [this, other], (v, site) => {
      const along = component(v, other.at(site), site)
      return v.map((x, i) => x - (along[i] as number))
    })
  }

  /** What of it lies along another vector, at each of its sites; the other must have them all. */
  projectedOn(other: SteeringVector): SteeringVector {
    return this.transformed('projection', [this, other], (v, site) => Float32Array.from(component(v, other.at(site), site)))
  }

  /** Cosine of the angle to another vector at a site, which may be left out where they have one in common. */
  cosine(other: SteeringVector, site?: string): number {
    const common = this.sites.filter((s) => other.vectors.has(s))
    if (site === undefined && common.length !== 1)
      throw new SiteError(
        common.length === 0
          ? `These vectors have no site in common: one has ${listed(this.sites)}, the other ${listed(other.sites)}.`
          : `These vectors have ${common.length} sites in common (${listed(common)}); name the one to compare at.`,
      )
    const at = site ?? (common[0] as string)
    const [a, b] = [this.at(at), other.at(at)]
    sameWidth(a, b, at)
    return dot(a, b) / (nonZero(a, at) * nonZero(b, at))
  }

  /**
   * Edits that add the vector: `model.with(vector.edits({ scale: 4 }))`. Only {@link check} and `steer` compare models.
   * @throws EditError for a zero direction, and for strengths that overflow float32.
   */
  edits(options: SteerOptions = {}): DataEdit[] {
    const { scale = 1, where, sites = this.sites, schedule, keepNorm = false } = options
    const strongest = Math.abs(scale) * (schedule ?? [1]).reduce((m, x) => Math.max(m, Math.abs(x)), 0)
    if (!Number.isFinite(scale)) throw new EditError(`The strength of a vector must be a finite number, not ${scale}.`)
    return sites.map((site) => {
      const v = this.at(site)
      const largest = v.reduce((m, x) => Math.max(m, Math.abs(x)), 0)
      if (largest === 0)
        throw new EditError(`The vector is zero at '${site}', so adding it would change nothing; leave that site out with 'sites'.`)
      // Norms square what they are given, so that their sums overflow long before the numbers themselves.
      if (!((strongest * norm(v)) ** 2 < largestFloat32))
        throw new EditError(`The strength ${scale} overflows at '${site}', where the vector reaches ${largest}; give a smaller number.`)
      return (keepNorm ? addKeepNorm : add)(site, v, { scale, ...(schedule ? { schedule } : {}), ...(where ? { where } : {}) })
    })
  }

  /**
   * Refuses a model that lacks a site, whose widths differ, or that is not the one the vector was measured on.
   * @throws SiteError, ShapeError, ModelError.
   */
  async check(model: Model, options: CheckOptions = {}): Promise<void> {
    for (const [site, v] of this.vectors) {
      const width = widthOf(model, model.site(site))
      if (width !== v.length)
        throw new ShapeError(
          `The vector is ${v.length} wide at '${site}', but the site is ${width} wide in ${model.origin.id}: it belongs to another model (${this.record.model.id}).`,
        )
    }
    if (options.allowOtherModel) return
    const { id, hash, family } = this.record.model
    const other = (why: string) =>
      new ModelError(
        `The vector was measured on ${id}, ${why}; extract it anew on this model, or set allowOtherModel to use it all the same.`,
      )
    if (hash === undefined) {
      if (family !== undefined && family !== model.architecture.family)
        throw other(`a model of the family '${family}', but ${model.origin.id} is of '${model.architecture.family}'`)
    } else if (hash !== (await model.origin.hash())) throw other(`whose files have another hash than those of ${model.origin.id}`)
  }

  private combined(other: SteeringVector, factor: number): SteeringVector {
    const out = new Map<string, ArrayLike<number>>(this.vectors)
    for (const [site, v] of other.vectors) {
      const mine = this.vectors.get(site)
      if (mine) sameWidth(mine, v, site)
      out.set(
        site,
        v.map((x, i) => (mine ? (mine[i] as number) : 0) + factor * x),
      )
    }
    const { model } = other.record
    const hashes = [this.record.model.hash, model.hash]
    if (!hashes.includes(undefined) && hashes[0] !== hashes[1])
      throw new ModelError(
        `The vectors were measured on different models, ${this.record.model.id} and ${model.id}; combine vectors of one model only.`,
      )
    const parts = [...partsOf(this.record), ...partsOf(other.record).map((p) => ({ ...p, factor: p.factor * factor }))]
    return new SteeringVector(out, derived('combination', parts, this.record))
  }

  private transformed(
    method: string,
    of: readonly SteeringVector[],
    change: (v: Float32Array, site: string) => Float32Array,
  ): SteeringVector {
    const parts = of.map(({ record }) => ({ factor: 1, record }))
    return new SteeringVector(this.map(change), derived(method, parts, this.record))
  }

  private map<T>(change: (v: Float32Array, site: string) => T): Map<string, T> {
    return new Map([...this.vectors].map(([site, v]) => [site, change(v, site)]))
  }
}

/**
 * The model, steered: the vector is checked against it, then added.
 * @throws SiteError, ShapeError, ModelError, EditError.
 */
export async function steer(model: Model, vector: SteeringVector, options: SteerOptions & CheckOptions = {}): Promise<Model> {
  const { sites } = options
  const chosen = sites ? vector.only(sites) : vector
  await chosen.check(model, options)
  return model.with(chosen.edits({ ...options, sites: chosen.sites }))
}

/** A vector from what a file holds; what cannot be a vector is told as a fault of the file. */
export function vectorOfFile(
  path: string,
  directions: Iterable<readonly [site: string, direction: ArrayLike<number>]>,
  record: VectorRecord,
): SteeringVector {
  try {
    return new SteeringVector(directions, record)
  } catch (cause) {
    throw new FormatError(`${path} holds no usable vector. ${messageOf(cause)}`, { cause })
  }
}

/** Numbers that a site has for each position. */
export function widthOf(model: Model, info: SiteInfo): number {
  return model
    .shapeOf(info)
    .slice(2)
    .reduce<number>((product, n) => product * (n as number), 1)
}

/** Axes that a direction cannot have, with the reason. */
const unfit: Readonly<Record<string, string>> = {
  one: 'it holds one number for each position',
  chosen: 'its coordinates mean other experts at every position',
}

/** Why no direction can be read or added at a site; undefined where one can. */
export function noDirection(axes: readonly string[]): string | undefined {
  if (axes[0] !== 'batch' || axes[1] !== 'pos') return `its axes are [${axes.join(', ')}], so it has no vector for each position`
  return unfit[axes[2] ?? '']
}

function checkDirection(site: string, v: Float32Array): Float32Array {
  const row = rowOf(site)
  const layered = /^[a-z_]+\.\d+$/.test(site)
  if (!row || layered !== (row.per === 'layer'))
    throw new SiteError(`'${site}' is no site that a vector can have; write its canonical name, such as 'resid_post.3'.`)
  const reason = noDirection(row.axes)
  if (reason) throw new SiteError(`'${site}' cannot be steered by a vector: ${reason}.`)
  if (v.length === 0) throw new ShapeError(`The direction at '${site}' is empty; it must be as wide as the site.`)
  const bad = v.findIndex((x) => !Number.isFinite(x))
  if (bad >= 0) throw new UsageError(`The direction at '${site}' holds ${v[bad]} at ${bad}, which is not a finite number; make it anew.`)
  return v
}

/** Sums stay sums: their parts are those of their terms, so that a record does not grow with every step. */
const partsOf = (record: VectorRecord) => (record.method === 'combination' && record.parts ? record.parts : [{ factor: 1, record }])

function derived(method: string, parts: VectorRecord['parts'] & object, of: VectorRecord): VectorRecord {
  return { method, model: of.model, sites: of.sites, parts, ...(of.precision ? { precision: of.precision } : {}) }
}

function sameWidth(a: Float32Array, b: Float32Array, site: string): void {
  if (a.length !== b.length)
    throw new ShapeError(`The vectors are ${a.length} and ${b.length} wide at '${site}', so they belong to different models.`)
}

function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number)
  return sum
}

const norm = (v: ArrayLike<number>) => Math.sqrt(dot(v, v))

function nonZero(v: Float32Array, site: string): number {
  const length = norm(v)
  if (length === 0) throw new UsageError(`The vector is zero at '${site}', so it has no direction there; leave that site out with only().`)
  return length
}

function component(v: Float32Array, along: Float32Array, site: string): Float64Array {
  sameWidth(v, along, site)
  const factor = dot(v, along) / nonZero(along, site) ** 2
  return Float64Array.from(along, (x) => factor * x)
}
