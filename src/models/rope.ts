/** @file Rotary positions: reading them from a config, and the frequencies of every scaling. */
import { ModelError } from '../base/errors.ts'
import type { ConfigReader } from './config.ts'
import type { RopeScaling, Rotary } from './spec.ts'

/** What a family says about its rotation, where the config does not. */
export interface RotaryFacts {
  readonly headDim: number
  readonly interleaved?: boolean
  /** Fraction of each head that rotates. */
  readonly fraction?: number
  readonly theta?: number
  /** Kind of layer, in configs that keep parameters for each kind. */
  readonly layerType?: string
}

/** Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before). */
export function readRotary(c: ConfigReader, facts: RotaryFacts): Rotary {
  const all = c.section('rope_parameters') ?? c.section('rope_scaling')
  const section = (facts.layerType ? all?.section(facts.layerType) : undefined) ?? all
  const theta = section?.maybe('rope_theta') ?? c.maybe('rope_theta', 'rotary_emb_base') ?? facts.theta ?? 10_000
  const fraction =
    section?.maybe('partial_rotary_factor') ?? c.maybe('partial_rotary_factor', 'rotary_pct', 'rope_pct') ?? facts.fraction ?? 1
  const kind = String(section?.config.rope_type ?? section?.config.type ?? 'default')
  const read = readers[kind]
  if (!read) throw new ModelError(`The RoPE scaling '${kind}' is not known; known are ${Object.keys(readers).join(', ')}.`)
  const asked = Math.trunc(facts.headDim * fraction + 1e-6)
  // An odd number of coordinates is made even, but the frequencies keep it.
  const dim = asked + (asked % 2)
  if (dim < 2 || dim > facts.headDim)
    throw new ModelError(`config.json asks to rotate ${asked} of the ${facts.headDim} coordinates of each head, which cannot be done.`)
  return {
    theta,
    dim,
    ...(asked === dim ? {} : { exponentDim: asked }),
    interleaved: facts.interleaved ?? false,
    scaling: section ? read(section, c) : { kind: 'none' },
  }
}

const longest = (c: ConfigReader) => c.integer('max_position_embeddings', 'n_positions')
const original = (s: ConfigReader, c: ConfigReader) =>
  c.optionalInteger('original_max_position_embeddings') ?? s.optionalInteger('original_max_position_embeddings') ?? longest(c)
/** The factor by which the context was stretched. */
const stretch = (s: ConfigReader, c: ConfigReader) => s.maybe('factor') ?? longest(c) / original(s, c)

const longrope = (s: ConfigReader, c: ConfigReader): RopeScaling => {
  const factor = stretch(s, c)
  const originalMaxPositions = original(s, c)
  const amplitude = s.maybe('attention_factor') ?? (factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(originalMaxPositions)))
  return { kind: 'longrope', short: s.numbers('short_factor'), long: s.numbers('long_factor'), originalMaxPositions, amplitude }
}

const readers: Readonly<Record<string, (s: ConfigReader, c: ConfigReader) => RopeScaling>> = {
  default: () => ({ kind: 'none' }),
  linear: (s) => ({ kind: 'linear', factor: s.number('factor') }),
  llama3: (s, c) => ({
    kind: 'llama3',
    factor: s.number('factor'),
    lowFreqFactor: s.number('low_freq_factor'),
    highFreqFactor: s.number('high_freq_factor'),
    originalMaxPositions: original(s, c),
  }),
  dynamic: (s, c) => ({ kind: 'dynamic', factor: s.number('factor'), originalMaxPositions: longest(c) }),
  yarn: (s, c) => {
    const factor = stretch(s, c)
    const amplitude = (scale: number, weight = 1) => (scale <= 1 ? 1 : 0.1 * weight * Math.log(scale) + 1)
    const [mscale, mscaleAll] = [s.maybe('mscale'), s.maybe('mscale_all_dim')]
    return {
      kind: 'yarn',
      factor,
      betaFast: s.maybe('beta_fast') ?? 32,
      betaSlow: s.maybe('beta_slow') ?? 1,
      originalMaxPositions: original(s, c),
      truncate: s.flag('truncate', true),
      amplitude:
        s.maybe('attention_factor') ?? (mscale && mscaleAll ? amplitude(factor, mscale) / amplitude(factor, mscaleAll) : amplitude(factor)),
    }
  },
  longrope,
  // The name under which the first Phi-3 checkpoints have it.
  su: longrope,
}

/** Longest context of a model: dynamic scaling reaches beyond the length that its config says. */
export function longestContext(declared: number, { scaling }: Rotary): number {
  return scaling.kind === 'dynamic' ? Math.floor(declared * scaling.factor) : declared
}

/** Angular frequencies of the rotated pairs, [dim/2], for runs within the original length; `long` for those beyond it. */
export function ropeFrequencies(r: Rotary, long = false): Float32Array {
  const plain = (i: number) => Math.fround(1 / r.theta ** exponent(r, i))
  return Float32Array.from({ length: r.dim / 2 }, (_, i) => scaled(plain(i), i, r, long))
}

const exponent = (r: Rotary, i: number) => (2 * i) / (r.exponentDim ?? r.dim)

/** Factor on cosines and sines. */
export function ropeAmplitude({ scaling }: Rotary): number {
  return 'amplitude' in scaling ? scaling.amplitude : 1
}

function scaled(frequency: number, i: number, r: Rotary, long: boolean): number {
  const s = r.scaling
  switch (s.kind) {
    case 'linear':
      return frequency / s.factor
    case 'llama3': {
      // Long wavelengths are stretched by the factor, short ones kept, those between blended (Llama 3.1).
      const wavelength = (2 * Math.PI) / frequency
      if (wavelength > s.originalMaxPositions / s.lowFreqFactor) return frequency / s.factor
      if (wavelength < s.originalMaxPositions / s.highFreqFactor) return frequency
      const smooth = (s.originalMaxPositions / wavelength - s.lowFreqFactor) / (s.highFreqFactor - s.lowFreqFactor)
      return ((1 - smooth) * frequency) / s.factor + smooth * frequency
    }
    case 'yarn': {
      // Pairs that turn often enough within the original length are kept, slow ones stretched, with a ramp between (arXiv 2309.00071).
      const pairOf = (turns: number) => (r.dim * Math.log(s.originalMaxPositions / (turns * 2 * Math.PI))) / (2 * Math.log(r.theta))
      const whole = (x: number, round: (x: number) => number) => (s.truncate ? round(x) : x)
      const low = Math.max(whole(pairOf(s.betaFast), Math.floor), 0)
      const high = Math.min(whole(pairOf(s.betaSlow), Math.ceil), r.dim - 1)
      const ramp = Math.min(Math.max((i - low) / (high === low ? 0.001 : high - low), 0), 1)
      return (frequency / s.factor) * ramp + frequency * (1 - ramp)
    }
    case 'longrope': {
      const divisors = long ? s.long : s.short
      if (divisors.length !== r.dim / 2)
        throw new ModelError(`The longrope scaling has ${divisors.length} factors, but ${r.dim / 2} pairs of each head rotate.`)
      return Math.fround(1 / ((divisors[i] as number) * r.theta ** exponent(r, i)))
    }
    default:
      return frequency
  }
}

/** Cosine and sine tables [positions, dim/2], at the angles position · frequency. */
export function ropeTables(frequencies: Float32Array, amplitude: number, positions: number): { cos: Float32Array; sin: Float32Array } {
  const half = frequencies.length
  const cos = new Float32Array(positions * half)
  const sin = new Float32Array(positions * half)
  for (let p = 0; p < positions; p++)
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(p * (frequencies[i] as number))
      cos[p * half + i] = amplitude * Math.cos(angle)
      sin[p * half + i] = amplitude * Math.sin(angle)
    }
  return { cos, sin }
}

/** Whether keys that were cached in a run of `before` tokens are those of a run of `after` tokens: frequencies may depend on the length. */
export function cacheHolds(rotations: Iterable<Rotary>, before: number, after: number): boolean {
  for (const { scaling: s } of rotations) {
    if (s.kind === 'dynamic' && before !== after && Math.max(before, after) > s.originalMaxPositions) return false
    if (s.kind === 'longrope' && before <= s.originalMaxPositions !== after <= s.originalMaxPositions) return false
  }
  return true
}
