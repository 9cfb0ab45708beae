/** @file What a trunk computes from positions: rotary tables and ALiBi biases. */
import {
  add,
  cast,
  cos,
  exp,
  greater,
  log,
  maximum,
  mul,
  reshape,
  scalar,
  sin,
  sliceTo,
  sub,
  type Tensor,
  where,
} from '../../tensor/index.ts'
import { ropeAmplitude, ropeFrequencies, ropeTables } from '../rope.ts'
import type { Positions, RopeScaling, Rotary } from '../spec.ts'
import type { Parameters } from './parts.ts'

/** Rotary tables [context, rotary/2]. */
export interface RotaryTables {
  readonly cos: Tensor
  readonly sin: Tensor
}

/** Makes the tables of a trace, each kind once. */
export class PositionTables {
  private readonly parameters: Parameters
  /** Longest row after this step, int32 scalar. */
  private readonly total: Tensor
  private readonly made = new Map<string, RotaryTables>()

  constructor(parameters: Parameters, total: Tensor) {
    this.parameters = parameters
    this.total = total
  }

  /** Tables of one kind of rotation. */
  rotary(r: Rotary): RotaryTables {
    const key = JSON.stringify([r.theta, r.dim, r.scaling])
    let tables = this.made.get(key)
    if (!tables) {
      const suffix = this.made.size === 0 ? '' : `.${this.made.size}`
      const make = byScaling[r.scaling.kind] ?? ((t, rotary, end) => t.fixed(rotary, end, false))
      tables = make(this, r, suffix)
      this.made.set(key, tables)
    }
    return tables
  }

  /** Tables that are the same in every run. */
  fixed(r: Rotary, suffix: string, long: boolean): RotaryTables {
    const { contextLength } = this.parameters
    const shape = [contextLength, r.dim / 2]
    const tables = ropeTables(ropeFrequencies(r, long), ropeAmplitude(r), contextLength)
    return {
      cos: this.parameters.table(`rope_cos${suffix}`, shape, tables.cos),
      sin: this.parameters.table(`rope_sin${suffix}`, shape, tables.sin),
    }
  }

  /** One set of tables up to the original length, another for longer runs. */
  byLength(r: Rotary, suffix: string, originalMaxPositions: number): RotaryTables {
    if (this.parameters.contextLength <= originalMaxPositions) return this.fixed(r, suffix, false)
    const [short, long] = [this.fixed(r, suffix, false), this.fixed(r, `${suffix}.long`, true)]
    const beyond = greater(this.total, originalMaxPositions)
    return { cos: where(beyond, long.cos, short.cos), sin: where(beyond, long.sin, short.sin) }
  }

  /** Frequencies that fall with the length of the run (NTK-aware scaling): the base grows so that the slowest pair still fits. */
  growing(r: Rotary, suffix: string, s: RopeScaling & { kind: 'dynamic' }): RotaryTables {
    const { contextLength } = this.parameters
    if (contextLength <= s.originalMaxPositions) return this.fixed(r, suffix, false)
    const half = r.dim / 2
    const length = maximum(cast(this.total, 'float32'), s.originalMaxPositions)
    const stretch = sub(mul(length, s.factor / s.originalMaxPositions), s.factor - 1)
    const growth = mul(log(stretch), r.dim / (r.dim - 2))
    const powers = Float32Array.from({ length: half }, (_, i) => -i / half)
    const slower = exp(mul(this.parameters.table(`rope_power${suffix}`, [half], powers), growth))
    const frequencies = mul(this.parameters.table(`rope_frequency${suffix}`, [half], ropeFrequencies(r)), slower)
    const places = Float32Array.from({ length: contextLength }, (_, p) => p)
    const angles = mul(this.parameters.table('rope_places', [contextLength, 1], places), frequencies)
    return { cos: cos(angles), sin: sin(angles) }
  }

  /** Biases [1, head, 1, key] of ALiBi; `keys` names the axis of the keys. */
  alibi(p: Positions & { kind: 'alibi' }, keys: string): Tensor {
    const { contextLength } = this.parameters
    const heads = p.slopes.length
    const values = new Float32Array(heads * contextLength)
    const round = p.rounded ? toBfloat16 : (x: number) => x
    for (const [h, slope] of p.slopes.entries())
      for (let k = 0; k < contextLength; k++) values[h * contextLength + k] = round(round(slope) * k) * (p.rounded?.factor ?? 1)
    const table = this.parameters.table('alibi', [heads, contextLength], values)
    return reshape(sliceTo(table, 1, this.total, keys), [1, heads, 1, keys])
  }
}

const byScaling: Readonly<Partial<Record<RopeScaling['kind'], (t: PositionTables, r: Rotary, suffix: string) => RotaryTables>>> = {
  longrope: (t, r, suffix) => t.byLength(r, suffix, (r.scaling as RopeScaling & { kind: 'longrope' }).originalMaxPositions),
  dynamic: (t, r, suffix) => t.growing(r, suffix, r.scaling as RopeScaling & { kind: 'dynamic' }),
}

/** The nearest number that bfloat16 has, halves to even. */
function toBfloat16(x: number): number {
  const bits = new Uint32Array(Float32Array.of(x).buffer)
  bits[0] = (((bits[0] as number) + 0x7fff + (((bits[0] as number) >>> 16) & 1)) & 0xffff0000) >>> 0
  return new Float32Array(bits.buffer)[0] as number
}

/** The index of a token in its table of learned positions. */
export const learnedIndex = (positions: Tensor, offset: number) => (offset === 0 ? positions : add(positions, scalar(offset, 'int64')))
