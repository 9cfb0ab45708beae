/** @file What page and server say to each other about steering: methods, examples, divergence, vector files. */
import { z } from 'zod'
import type { SteeringMethodName, VectorFormat } from '../steer/index.ts'
import { editList, looked, modelName } from './protocol-parts.ts'

const formats = ['safetensors', 'gguf', 'neuronpedia', 'easysteer'] as const satisfies readonly VectorFormat[]

/** Bodies of requests, by route. */
export const steerBodies = {
  examples: z.strictObject({ data: z.string().max(8_000_000) }),
  divergence: z.strictObject(looked),
  'vector-file': z.strictObject({ ...modelName, edits: editList, format: z.enum(formats).default('safetensors') }),
} as const

/** `GET /api/methods`: how a vector can be made, and the files it can be written to. */
export interface MethodsAnswer {
  readonly methods: readonly {
    readonly name: SteeringMethodName
    readonly doc: string
    readonly paired: boolean
    readonly options: readonly string[]
  }[]
  readonly formats: readonly { readonly name: VectorFormat; readonly doc: string; readonly extension: string }[]
}

/** `POST /api/examples`: the two sides that a file of examples holds. */
export interface ExamplesAnswer {
  readonly positive: readonly string[]
  readonly negative: readonly string[]
  /** What tells them apart: names of columns, or values of the label. */
  readonly names: readonly [positive: string, negative: string]
}

/** `POST /api/divergence` */
export interface DivergenceAnswer {
  readonly ids: readonly number[]
  readonly pieces: readonly string[]
  /** KL(plain ‖ edited) of the distribution that each token was drawn from, in nats; the first one was drawn from none. */
  readonly kl: readonly (number | null)[]
  /** Mean over all positions, in nats. */
  readonly mean: number
  readonly unfired: readonly string[]
}
