/** @file Checkpoints of training: everything that the next step depends on. */
import { FormatError, listed, messageOf } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import type { DataPosition } from './data.ts'
import type { LossScaleState } from './loss-scale.ts'
import type { TrainingStep } from './step.ts'

/** A checkpoint as files hold it: tensors and strings. */
export interface Checkpoint {
  readonly tensors: Readonly<Record<string, NDArray>>
  readonly metadata: Readonly<Record<string, string>>
}

/** Where checkpoints are kept. A write leaves a whole checkpoint or none. */
export interface CheckpointFiles {
  write(name: string, checkpoint: Checkpoint): Promise<void>
  read(name: string): Promise<Checkpoint>
  /** Names of the whole checkpoints that are there. */
  list(): Promise<string[]>
  remove(name: string): Promise<void>
}

/** What is counted beside the tensors. */
export interface TrainingCounters {
  /** Steps done. */
  readonly step: number
  /** Updates done: steps without those that were left out because gradients overflowed. */
  readonly updates: number
  readonly data: DataPosition
  readonly lossScale?: LossScaleState
}

const format = 'actlens training 1'
const parameterKey = (name: string) => `parameter/${name}`
const stateKey = (key: string) => `state/${key}`

/** The name of the checkpoint after a step; names sort as steps do. */
export const checkpointName = (step: number) => `step-${String(step).padStart(9, '0')}`

/** The step of a checkpoint's name; undefined for other names. */
export const stepOfName = (name: string) => (/^step-\d+$/.test(name) ? Number(name.slice(5)) : undefined)

/** The newest of the checkpoints. */
export async function newestCheckpoint(files: CheckpointFiles): Promise<string | undefined> {
  const steps = (await files.list()).map((name) => [stepOfName(name), name] as const).filter(([s]) => s !== undefined)
  return steps.sort(([a], [b]) => (a as number) - (b as number)).at(-1)?.[1]
}

/** A checkpoint of a step and its counters; its tensors are the live ones, so it must be written before the next step. */
export function checkpointOf(step: TrainingStep, counters: TrainingCounters): Checkpoint {
  return {
    tensors: {
      ...Object.fromEntries([...step.parameters].map(([name, p]) => [parameterKey(name), p])),
      ...Object.fromEntries(Object.entries(step.states).map(([key, s]) => [stateKey(key), s])),
    },
    metadata: { format, training: JSON.stringify(counters) },
  }
}

/** Puts a checkpoint's values into a step; refuses one of another model or optimiser. */
export function restore(step: TrainingStep, checkpoint: Checkpoint, name: string): TrainingCounters {
  if (checkpoint.metadata.format !== format)
    throw new FormatError(`${name} is not a checkpoint of training (it lacks the mark '${format}'); give one that training wrote.`)
  const targets = new Map<string, NDArray<Float32Array>>([
    ...[...step.parameters].map(([n, p]) => [parameterKey(n), p] as const),
    ...Object.entries(step.states).map(([k, s]) => [stateKey(k), s] as const),
  ])
  const missing = [...targets.keys()].filter((k) => !(k in checkpoint.tensors))
  const extra = Object.keys(checkpoint.tensors).filter((k) => !targets.has(k))
  if (missing.length > 0 || extra.length > 0)
    throw new FormatError(
      `The checkpoint ${name} is of another model or optimiser: ${[missing.length > 0 ? `it lacks ${listed(missing, 4)}` : '', extra.length > 0 ? `it has ${listed(extra, 4)} that are not known here` : ''].filter(Boolean).join(', and ')}; resume with the settings that it was written with.`,
    )
  const values = [...targets].map(([key, target]) => {
    const { data } = checkpoint.tensors[key] as NDArray
    if (!(data instanceof Float32Array) || data.length !== target.data.length)
      throw new FormatError(
        `In the checkpoint ${name}, ${key} has ${data.length} values where ${target.data.length} float32 ones are needed; resume with the same model.`,
      )
    return [target, data] as const
  })
  const counters = countersOf(checkpoint, name)
  // Only now that all of it is known to fit is anything changed.
  for (const [target, data] of values) target.data.set(data)
  return counters
}

function countersOf(checkpoint: Checkpoint, name: string): TrainingCounters {
  let counters: TrainingCounters
  try {
    counters = JSON.parse(checkpoint.metadata.training ?? '') as TrainingCounters
  } catch (cause) {
    throw new FormatError(`The checkpoint ${name} does not say where training stood (${messageOf(cause)}); use an older one.`, { cause })
  }
  const whole = [counters.step, counters.updates, counters.data?.epoch, counters.data?.batch]
  if (!whole.every((n) => Number.isSafeInteger(n) && (n as number) >= 0))
    throw new FormatError(`The checkpoint ${name} does not say where training stood; use an older one.`)
  return counters
}
