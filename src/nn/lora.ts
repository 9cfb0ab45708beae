/** @file Low-rank adapters: a frozen linear layer plus a product of two thin matrices that is trained (Hu et al. 2021). */
import { UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { add, evaluate, input, matmul, mul, type ProgramOptions, type Tensor } from '../tensor/index.ts'
import { kaiming, zeros } from './initialisers.ts'
import { type LinearOptions, linear } from './modules.ts'
import { ParameterSet, type Scope } from './parameters.ts'

/** Settings of {@link loraLinear}. */
export interface LoraOptions extends LinearOptions {
  readonly rank: number
  /** The adapter is scaled by alpha/rank; `rank` by default. */
  readonly alpha?: number
}

/** Names of an adapter's parameters. */
const parts = { a: 'lora_a', b: 'lora_b' } as const

/** {@link linear} plus alpha/rank · x·`lora_a` [in, rank]·`lora_b` [rank, out], which starts at zero. */
export function loraLinear(scope: Scope, x: Tensor, out: number, { rank, alpha = rank, ...layer }: LoraOptions): Tensor {
  const base = linear(scope, x, out, layer)
  const a = scope.parameter(parts.a, [x.shape.at(-1) as number, rank], kaiming('uniform', 1 / Math.sqrt(3)))
  const b = scope.parameter(parts.b, [rank, out], zeros)
  return add(base, mul(matmul(matmul(x, a), b), alpha / rank))
}

/** For `trainable`: adapters are trained, everything else is frozen. */
export const loraOnly = (name: string) =>
  name.endsWith(`.${parts.a}`) || name.endsWith(`.${parts.b}`) || name === parts.a || name === parts.b

/** The parameters with every adapter added into its weight, so that plain `linear` layers do the same. */
export async function mergedLora(
  parameters: ParameterSet,
  options: { readonly alpha?: number; readonly program: ProgramOptions },
): Promise<ParameterSet> {
  const merged: Record<string, NDArray> = {}
  let adapters = 0
  for (const [name, p] of parameters) {
    if (loraOnly(name)) continue
    const prefix = name.endsWith('weight') ? name.slice(0, -'weight'.length) : undefined
    if (prefix === undefined || !parameters.has(`${prefix}${parts.a}`)) {
      merged[name] = { ...p, data: p.data.slice() }
      continue
    }
    const [a, b] = [parameters.get(`${prefix}${parts.a}`), parameters.get(`${prefix}${parts.b}`)]
    const rank = a.shape[1] as number
    const of = (key: string, array: NDArray) => input(key, 'float32', array.shape)
    const sum = add(of('w', p), mul(matmul(of('a', a), of('b', b)), (options.alpha ?? rank) / rank))
    merged[name] = (await evaluate({ sum }, { w: p, a, b }, options.program)).sum
    adapters++
  }
  if (adapters === 0)
    throw new UsageError('These parameters hold no adapter (lora_a and lora_b beside a weight), so there is nothing to merge.')
  return ParameterSet.from(merged)
}
