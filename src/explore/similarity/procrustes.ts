/** @file Orthogonal Procrustes (Schönemann 1966): how far one set of points is from a rotation of another (as a measure: Ding, Denain & Steinhardt 2021). */
import { type DoubleMatrix, smallSvd, times } from '../../tensor/index.ts'
import { centredPoints, innerProduct, type Points, principalComponentsOf, sameRows, scaledColumns } from './features.ts'

/** Points reduced to their principal components and to Frobenius norm one. */
export interface ProcrustesSide {
  /** [rows, count] */
  readonly scores: DoubleMatrix
  /** Share of the variance in them. */
  readonly explained: number
}

/** Prepares a side, so that it can be compared with many; at most `most` components (default 256) are kept. */
export async function procrustesSide(x: Points, most = 256): Promise<ProcrustesSide> {
  const { u, s, total } = await principalComponentsOf(x, most)
  const norm = Math.sqrt(total)
  return {
    scores: scaledColumns(
      u,
      s.map((v) => v / norm),
    ),
    explained: s.reduce((sum, v) => sum + v * v, 0) / total,
  }
}

/** ‖xᵀy‖ (nuclear) of centred points of norm one: 1 where a rotation and a scaling carry one into the other; scipy's disparity is 1 less its square. */
export async function rotationSimilarity(a: ProcrustesSide, b: ProcrustesSide): Promise<number> {
  sameRows(a.scores.shape[0] as number, b.scores.shape[0] as number)
  return smallSvd(await times(a.scores, b.scores, { transA: true })).s.reduce((sum, v) => sum + v, 0)
}

/** The rotation of the centred first points that brings them closest to the second. */
export interface Alignment {
  /** Orthonormal rows or columns, [width of the first, width of the second]. */
  readonly rotation: DoubleMatrix
  /** Factor that fits best after the rotation. */
  readonly scale: number
  /** ‖xᵀy‖ (nuclear) of centred points of norm one, from 0 to 1. */
  readonly similarity: number
  /** √(2 − 2·similarity): the distance of the points at norm one. */
  readonly distance: number
}

/** Finds the rotation for widths of up to a few hundred. */
export async function alignPoints(x: Points, y: Points): Promise<Alignment> {
  sameRows(x.shape[0] as number, y.shape[0] as number)
  const [a, b] = [await centredPoints(x), await centredPoints(y)]
  const { u, s, v } = smallSvd(await times(a, b, { transA: true }))
  const [aa, bb] = [await innerProduct(a, a), await innerProduct(b, b)]
  const nuclear = s.reduce((sum, value) => sum + value, 0)
  const similarity = nuclear / Math.sqrt(aa * bb)
  return {
    rotation: await times(u, v, { transB: true }),
    scale: nuclear / aa,
    similarity,
    distance: Math.sqrt(Math.max(0, 2 - 2 * similarity)),
  }
}
