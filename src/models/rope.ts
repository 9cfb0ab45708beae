/** @file Rotary position tables, with the scalings of the families. */
import { ModelError } from '../base/errors.ts'
import type { ConfigReader } from './config.ts'
import type { RopeScaling } from './spec.ts'

/** Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before). */
export function readRope(c: ConfigReader): { theta: number; scaling: RopeScaling } {
  const section = c.section('rope_parameters') ?? c.section('rope_scaling')
  const theta = section?.config.rope_theta !== undefined ? section.number('rope_theta') : c.number('rope_theta', 10_000)
  if (!section) return { theta, scaling: { kind: 'none' } }
  const kind = section.config.rope_type ?? section.config.type ?? 'default'
  const read = readers[String(kind)]
  if (!read) throw new ModelError(`The RoPE scaling '${String(kind)}' is not known; known are ${Object.keys(readers).join(', ')}.`)
  return { theta, scaling: read(section) }
}

const readers: Readonly<Record<string, (s: ConfigReader) => RopeScaling>> = {
  default: () => ({ kind: 'none' }),
  linear: (s) => ({ kind: 'linear', factor: s.number('factor') }),
  llama3: (s) => ({
    kind: 'llama3',
    factor: s.number('factor'),
    lowFreqFactor: s.number('low_freq_factor'),
    highFreqFactor: s.number('high_freq_factor'),
    originalMaxPositions: s.integer('original_max_position_embeddings'),
  }),
}

/** Angular frequencies of the rotated pairs, [dim/2]. */
export function ropeFrequencies(theta: number, dim: number, scaling: RopeScaling): Float64Array {
  return Float64Array.from({ length: dim / 2 }, (_, i) => scaled(Math.fround(1 / theta ** ((2 * i) / dim)), scaling))
}

function scaled(frequency: number, s: RopeScaling): number {
  if (s.kind === 'none') return frequency
  if (s.kind === 'linear') return frequency / s.factor
  // Long wavelengths are stretched by the factor, short ones kept, those between blended (Llama 3.1).
  const wavelength = (2 * Math.PI) / frequency
  if (wavelength > s.originalMaxPositions / s.lowFreqFactor) return frequency / s.factor
  if (wavelength < s.originalMaxPositions / s.highFreqFactor) return frequency
  const smooth = (s.originalMaxPositions / wavelength - s.lowFreqFactor) / (s.highFreqFactor - s.lowFreqFactor)
  return ((1 - smooth) * frequency) / s.factor + smooth * frequency
}

/** Cosine and sine tables [positions, dim/2]. */
export function ropeTables(theta: number, dim: number, scaling: RopeScaling, positions: number): { cos: Float32Array; sin: Float32Array } {
  const frequencies = ropeFrequencies(theta, dim, scaling)
  const half = dim / 2
  const cos = new Float32Array(positions * half)
  const sin = new Float32Array(positions * half)
  for (let p = 0; p < positions; p++)
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(p * (frequencies[i] as number))
      cos[p * half + i] = Math.cos(angle)
      sin[p * half + i] = Math.sin(angle)
    }
  return { cos, sin }
}
