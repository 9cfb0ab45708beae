/** @file Figures of a tab against those of Node. */
import { expect } from 'vitest'
import type { Figures } from './figures.ts'

/** Largest difference, by the scale of the expected values. */
export function errorOf(ours: readonly number[], want: readonly number[]): number {
  if (ours.length !== want.length) return Number.POSITIVE_INFINITY
  const scale = want.reduce((top, v) => Math.max(top, Math.abs(v)), 1e-30)
  return ours.reduce((worst, v, i) => (Number.isNaN(v) ? Number.POSITIVE_INFINITY : Math.max(worst, Math.abs(v - want[i]!) / scale)), 0)
}

/** The figures that differ by more than rounding; tokens must be the same ones. */
export function differing(ours: Figures, want: Figures, tolerance = 1e-4): string[] {
  expect(Object.keys(ours)).toEqual(Object.keys(want))
  return Object.keys(want).filter((name) => !(errorOf(ours[name]!, want[name]!) <= (name.endsWith('tokens') ? 0 : tolerance)))
}
