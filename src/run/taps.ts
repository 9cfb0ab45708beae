/** @file Taps: what to read, with the same `where` clause as edits. */
import { EditError } from '../base/errors.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import { positionAxis, type SiteInfo, type SiteResolver, sequenceOf } from '../sites/address.ts'
import { checkWhere, layerAllowed, maskOf, needsMask, type StepLayout, type Where } from '../sites/where.ts'
import { Activation } from './batch.ts'

/** A site, alias or pattern to read, perhaps only somewhere. */
export type TapSpec = string | { readonly site: string; readonly where?: Where }

/** A tap at one site. */
export interface ResolvedTap {
  /** As the caller wrote it. */
  readonly name: string
  readonly info: SiteInfo
  readonly where: Where
  /** The clause chooses places, so that the result is a list of places. */
  readonly restricted: boolean
  readonly when?: { readonly info: SiteInfo; readonly vector: ArrayLike<number>; readonly above?: number; readonly below?: number }
}

/** Resolves taps; refuses what the model lacks and clauses that can never hold. */
export function resolveTaps(specs: readonly TapSpec[], resolver: SiteResolver): ResolvedTap[] {
  const out: ResolvedTap[] = []
  for (const item of specs) {
    const tap = typeof item === 'string' ? { site: item } : item
    const label = `the tap at ${tap.site}`
    const where = checkWhere(tap.where, label)
    const infos = resolver.many(tap.site).filter((i) => layerAllowed(where, i.layer, i.stack.layers))
    if (infos.length === 0) throw new EditError(`${label} can never fire: its 'where.layers' leaves no layer of '${tap.site}'.`)
    const when = where.when && { ...where.when, info: resolver.one(where.when.site) }
    for (const info of infos) {
      if (where.tokens && sequenceOf(info) === 'image')
        throw new EditError(`${label} can never fire: its 'where.tokens' names tokens, and an image has none.`)
      if (when && sequenceOf(when.info) !== sequenceOf(info))
        throw new EditError(`The 'where.when' of ${label} reads '${when.info.site}', whose positions are not those of '${info.site}'.`)
      out.push({
        name: infos.length === 1 ? tap.site : info.site,
        info,
        where,
        restricted: needsMask(where) || when !== undefined,
        ...(when ? { when } : {}),
      })
    }
  }
  return out
}

/** The places that a clause chose. */
export interface Selection {
  readonly places: readonly { readonly row: number; readonly position: number }[]
  /** The values of a site at these places, one item each. */
  readonly of: (info: SiteInfo, array: NDArray) => Activation
}

/** Finds the places at which a tap's clause holds. */
export function selectPlaces(tap: ResolvedTap, layout: StepLayout, probe: NDArray | undefined): Selection {
  const { mask } = maskOf(tap.where, layout)
  const places: { row: number; position: number }[] = []
  for (let b = 0; b < layout.rows.length; b++)
    for (let c = 0; c < layout.width; c++) {
      if (!mask[b * layout.width + c]) continue
      if (tap.when && probe) {
        const { vector, above, below } = tap.when
        let value = 0
        const start = (b * layout.width + c) * vector.length
        for (let i = 0; i < vector.length; i++) value += (probe.data[start + i] as number) * (vector[i] as number)
        if (!(above !== undefined ? value > above : value < (below as number))) continue
      }
      places.push({ row: b, position: (layout.start[b] as number) + c })
    }
  const of = (info: SiteInfo, array: NDArray) => {
    const { axes } = info.row
    const pos = positionAxis(info.row)
    const before = sizeOf(array.shape.slice(1, pos))
    const after = sizeOf(array.shape.slice(pos + 1))
    const width = array.shape[pos] as number
    const data = new Float32Array(places.length * before * after)
    for (const [n, { row, position }] of places.entries())
      for (let h = 0; h < before; h++) {
        const column = position - (layout.start[row] as number)
        const start = ((row * before + h) * width + column) * after
        data.set((array.data as Float32Array).subarray(start, start + after), (n * before + h) * after)
      }
    const shape = [places.length, ...array.shape.slice(1, pos), ...array.shape.slice(pos + 1)]
    return new Activation(
      info.site,
      axes.filter((_, i) => i !== pos),
      { dtype: 'float32', shape, data },
      places.map(() => [0]),
    )
  }
  return { places, of }
}
