/** @file Affine maps of activations: one scale and one shift for each coordinate of each site, with a strength, an inverse, a composition, and a file. */
import { FormatError, listed, ModelError, nearest, ShapeError, SiteError, UsageError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import { openSafetensors, writeSafetensors } from '../../models/formats/index.ts'
import type { Model } from '../../run/model.ts'
import { affine, type DataEdit, type Where } from '../../sites/index.ts'
import type { RecordedModel } from '../record.ts'
import { widthOf } from '../vector.ts'

/** z ↦ scale ⊙ z + shift, coordinate by coordinate, [width] each. */
export interface AffineMap {
  readonly scale: Float64Array
  readonly shift: Float64Array
}

/** How maps were made. */
export interface MapsRecord {
  /** `lineas`, `mean-act`, `lin-act`, `aura`, …; `combination` where algebra made them. */
  readonly method: string
  readonly model: RecordedModel
  readonly options?: Readonly<Record<string, string | number | boolean>>
  readonly examples?: { readonly hash: string; readonly source: number; readonly target: number }
  readonly precision?: string
  readonly versions?: { readonly actlens: string; readonly runtime: string }
}

/** Share of coordinates that a map changes. */
export interface Support {
  readonly changed: number
  readonly of: number
}

const marker = 'actlens.affine-maps'

/** Affine maps by canonical site: an immutable value. */
export class AffineMaps {
  readonly maps: ReadonlyMap<string, AffineMap>
  readonly record: MapsRecord

  constructor(maps: Iterable<readonly [site: string, map: AffineMap]>, record: MapsRecord) {
    this.maps = new Map(maps)
    this.record = record
    if (this.maps.size === 0) throw new UsageError('There is no map here; name at least one site.')
    for (const [site, { scale, shift }] of this.maps) {
      if (scale.length !== shift.length || scale.length === 0)
        throw new ShapeError(
          `The map at '${site}' has ${scale.length} scales and ${shift.length} shifts; it needs one of each for every coordinate.`,
        )
      const bad = [...scale, ...shift].find((x) => !Number.isFinite(x))
      if (bad !== undefined) throw new UsageError(`The map at '${site}' holds ${bad}, which is not a finite number; fit it anew.`)
    }
  }

  /** Canonical sites. */
  get sites(): string[] {
    return [...this.maps.keys()]
  }

  /** The map at a site. */
  at(site: string): AffineMap {
    const found = this.maps.get(site)
    if (found) return found
    const near = nearest(site, this.maps.keys())
    throw new SiteError(`There is no map at '${site}'${near ? `; did you mean '${near}'?` : ''} There are ${listed(this.sites)}.`)
  }

  /** The maps at a strength: 0 is the identity, 1 the maps themselves (LinEAS, eq. of T^λ: (1 + λ(ω − 1)) ⊙ z + λ b). */
  strength(lambda: number): AffineMaps {
    if (!Number.isFinite(lambda)) throw new UsageError(`A strength must be a finite number, not ${lambda}.`)
    return this.changed(({ scale, shift }) => ({ scale: scale.map((w) => 1 + lambda * (w - 1)), shift: shift.map((b) => lambda * b) }), {
      strength: lambda,
    })
  }

  /**
   * The maps that undo these: z ↦ (z − shift) / scale.
   * @param floor the smallest scale that is undone; a coordinate below it has lost its value.
   */
  inverse(floor = 1e-2): AffineMaps {
    return this.changed(
      ({ scale, shift }, site) => {
        const lost = scale.findIndex((w) => Math.abs(w) < floor)
        if (lost >= 0)
          throw new UsageError(
            `The map at '${site}' scales coordinate ${lost} by ${scale[lost]}, which cannot be undone; invert a weaker strength.`,
          )
        return { scale: scale.map((w) => 1 / w), shift: shift.map((b, i) => -b / (scale[i] as number)) }
      },
      { inverse: true },
    )
  }

  /** First these maps, then the others, site by site; a site that only one has keeps its map. */
  followedBy(next: AffineMaps): AffineMaps {
    sameModel(this.record.model, next.record.model)
    const out = new Map(this.maps)
    for (const [site, second] of next.maps) {
      const first = this.maps.get(site)
      if (first && first.scale.length !== second.scale.length)
        throw new ShapeError(
          `The maps are ${first.scale.length} and ${second.scale.length} wide at '${site}', so they belong to different models.`,
        )
      out.set(
        site,
        first
          ? {
              scale: first.scale.map((w, i) => w * (second.scale[i] as number)),
              shift: first.shift.map((b, i) => (second.scale[i] as number) * b + (second.shift[i] as number)),
            }
          : second,
      )
    }
    return new AffineMaps(out, { method: 'combination', model: this.record.model })
  }

  /** Coordinates whose map is not the identity, in all and by site. Proximal steps leave exact ones and zeros, so nothing is rounded. */
  get support(): Support & { readonly bySite: ReadonlyMap<string, Support> } {
    const bySite = new Map(
      [...this.maps].map(([site, { scale, shift }]) => [
        site,
        { changed: scale.reduce((n, w, i) => n + (w !== 1 || shift[i] !== 0 ? 1 : 0), 0), of: scale.length },
      ]),
    )
    const sum = (key: keyof Support) => [...bySite.values()].reduce((n, s) => n + s[key], 0)
    return { changed: sum('changed'), of: sum('of'), bySite }
  }

  /** Edits that apply the maps to prompt and generated tokens alike: `model.with(maps.edits())`. Sites with the identity have none. */
  edits(options: { readonly where?: Where } = {}): DataEdit[] {
    const { where } = options
    const { bySite } = this.support
    return [...this.maps]
      .filter(([site]) => (bySite.get(site)?.changed ?? 0) > 0)
      .map(([site, { scale, shift }]) =>
        affine(site, { scale: Float32Array.from(scale), shift: Float32Array.from(shift) }, where ? { where } : {}),
      )
  }

  /**
   * Refuses a model of other widths or sites, or that is not the one the maps were fitted on.
   * @throws SiteError, ShapeError, ModelError.
   */
  async check(model: Model, options: { readonly allowOtherModel?: boolean } = {}): Promise<void> {
    for (const [site, { scale }] of this.maps) {
      const width = widthOf(model, model.site(site))
      if (width !== scale.length)
        throw new ShapeError(
          `The map is ${scale.length} wide at '${site}', but the site is ${width} wide in ${model.origin.id}: it belongs to another model.`,
        )
    }
    const { hash, id } = this.record.model
    if (!options.allowOtherModel && hash !== undefined && hash !== (await model.origin.hash()))
      throw new ModelError(
        `The maps were fitted on ${id}, whose files have another hash than those of ${model.origin.id}; fit them anew on this model, or set allowOtherModel to use them all the same.`,
      )
  }

  /** Writes the maps as safetensors: `SITE.scale` and `SITE.shift`, float64, with the record as metadata. */
  async save(path: string): Promise<void> {
    const tensors: Record<string, NDArray> = {}
    for (const [site, { scale, shift }] of this.maps) {
      tensors[`${site}.scale`] = { dtype: 'float64', shape: [scale.length], data: scale }
      tensors[`${site}.shift`] = { dtype: 'float64', shape: [shift.length], data: shift }
    }
    await writeSafetensors(path, tensors, { format: marker, version: '1', record: JSON.stringify(this.record) })
  }

  /** Reads what {@link AffineMaps.save} wrote. */
  static async load(path: string): Promise<AffineMaps> {
    const store = await openSafetensors(path)
    try {
      const record = store.metadata.get('record')
      if (store.metadata.get('format') !== marker || typeof record !== 'string')
        throw new FormatError(`${path} holds no affine maps of actlens; check what file it is.`)
      const maps = new Map<string, AffineMap>()
      const values = async (name: string) => Float64Array.from((await store.readRaw(name)).data as Float64Array)
      for (const name of store.tensors.keys()) {
        if (!name.endsWith('.scale')) continue
        const site = name.slice(0, -'.scale'.length)
        maps.set(site, { scale: await values(name), shift: await values(`${site}.shift`) })
      }
      return new AffineMaps(maps, JSON.parse(record) as MapsRecord)
    } finally {
      await store.close()
    }
  }

  private changed(
    change: (map: AffineMap, site: string) => AffineMap,
    options: Readonly<Record<string, string | number | boolean>>,
  ): AffineMaps {
    return new AffineMaps(
      [...this.maps].map(([site, map]) => [site, change(map, site)] as const),
      { ...this.record, options: { ...this.record.options, ...options } },
    )
  }
}

/** The map that changes nothing. */
export const identityMap = (width: number): AffineMap => ({ scale: new Float64Array(width).fill(1), shift: new Float64Array(width) })

function sameModel(a: RecordedModel, b: RecordedModel): void {
  if (a.hash !== undefined && b.hash !== undefined && a.hash !== b.hash)
    throw new ModelError(`The maps were fitted on different models, ${a.id} and ${b.id}; compose maps of one model only.`)
}
