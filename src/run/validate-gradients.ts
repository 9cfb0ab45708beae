/** @file Gradients of the recorded loss, for the tensors of a golden file that want them. */
import { ModelError, messageOf } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import type { Activation } from './batch.ts'
import type { Model } from './model.ts'
import { firstRows, type GradientTarget, type Group, NotChecked, type Place, recordedLoss } from './validate-recipes.ts'

type Found = Activation | NDArray | NotChecked

/** Gradients of the recorded loss of the first row, at all targets at once; one that the model lacks refuses when it is asked for. */
export async function gradientsAt(model: Model, group: Group, targets: readonly GradientTarget[]): Promise<Place['gradient']> {
  const found = await findAll(model, group, targets)
  return (target) => {
    const value = found.get(keyOf(target))
    if (value === undefined || value instanceof NotChecked) throw value ?? new NotChecked('its gradient was not computed')
    return value
  }
}

const keyOf = ({ kind, name }: GradientTarget) => `${kind} ${name}`

async function findAll(model: Model, group: Group, targets: readonly GradientTarget[]): Promise<Map<string, Found>> {
  if (targets.length === 0) return new Map()
  const named = (kind: GradientTarget['kind']) => [...new Set(targets.filter((t) => t.kind === kind).map((t) => t.name))]
  try {
    const { sites, parameters } = await model.gradient(
      { of: recordedLoss(model), at: named('site'), parameters: named('parameter') },
      firstRows(model, group, 1),
    )
    return new Map(targets.map((t) => [keyOf(t), (t.kind === 'site' ? sites : parameters)[t.name] as Found]))
  } catch (error) {
    if (!(error instanceof ModelError)) throw error
    // One that the model does not read must not hide the others.
    if (targets.length === 1) return new Map(targets.map((t) => [keyOf(t), new NotChecked(messageOf(error))]))
    const parts: Map<string, Found>[] = []
    for (const target of targets) parts.push(await findAll(model, group, [target]))
    return new Map(parts.flatMap((part) => [...part]))
  }
}
