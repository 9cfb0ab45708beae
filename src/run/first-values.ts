/** @file First values of the parameters of a model that is trained from nothing, by the part that each plays in the model's record. */
import type { ModelRecord } from '../models/architecture.ts'
import type { Norm } from '../models/spec.ts'
import { initialisers } from '../nn/index.ts'
import type { Initialiser } from '../nn/initialisers.ts'

/** What a parameter is: a matrix with the axis over which it sums, a bias, or positions that are learned. */
type Role = { readonly sumsOver: number } | 'bias' | 'positions'

/** Parts of a record, each with what the names of its parameters begin with. */
function partsOf(record: ModelRecord): { readonly part: object; readonly prefix: string }[] {
  if (record.kind !== 'image-prefix') return [{ part: record.spec, prefix: '' }]
  const { vision, language, projector, prefixes } = record.spec
  return [
    { part: vision, prefix: prefixes.vision },
    { part: language, prefix: prefixes.language },
    { part: projector, prefix: prefixes.projector },
  ]
}

/**
 * First values by the name of a parameter: gains leave their input as it is, biases are nothing, matrices keep the size of what they
 * read, embeddings have length one.
 * @param std standard deviation of the matrices; one over the root of the fan-in by default.
 */
export function firstValues(record: ModelRecord, std?: number): (name: string, shape: readonly number[]) => Initialiser {
  const parts = partsOf(record)
  const roles = new Map<string, Role>()
  for (const { part, prefix } of parts) visit(part, prefix, roles)
  const storesGainsLessOne = (name: string) =>
    parts.some(({ part, prefix }) => name.startsWith(prefix) && (part as { finalNorm?: Norm }).finalNorm?.plusOne)
  return (name, shape) => {
    const role = roles.get(name)
    if (role === 'bias') return initialisers.zeros
    if (shape.length === 1 && role !== 'positions') return storesGainsLessOne(name) ? initialisers.zeros : initialisers.ones
    return initialisers.normal(std ?? 1 / Math.sqrt(fanIn(shape, role)))
  }
}

/** How many numbers meet in one that a parameter gives. */
function fanIn(shape: readonly number[], role: Role | undefined): number {
  // The convolution of patches sums over all but its output channels.
  if (shape.length === 4) return shape.slice(1).reduce((n, s) => n * s, 1)
  return shape.at(typeof role === 'object' ? role.sumsOver : -1) as number
}

function visit(part: unknown, prefix: string, roles: Map<string, Role>): void {
  if (typeof part !== 'object' || part === null) return
  const { weight, bias, layout, count, layers, block } = part as Readonly<Record<string, unknown>>
  if (typeof weight === 'string' && typeof layout === 'string') roles.set(prefix + weight, { sumsOver: layout === 'in,out' ? 0 : -1 })
  if (typeof weight === 'string' && typeof count === 'number') roles.set(prefix + weight, 'positions')
  if (typeof bias === 'string') roles.set(prefix + bias, 'bias')
  if (typeof layers === 'number' && typeof block === 'function')
    for (let layer = 0; layer < layers; layer++) visit((block as (layer: number) => unknown)(layer), prefix, roles)
  for (const inner of Object.values(part)) visit(inner, prefix, roles)
}
