/** @file Loading: from a source to a model value, checked on the way. */
import { FormatError, listed, ModelError } from '../base/errors.ts'
import type { WorkOptions } from '../base/progress.ts'
import { type Architecture, architectureOf } from '../models/architecture.ts'
import type { Config } from '../models/config.ts'
import { recordOf } from '../models/families/index.ts'
import type { WeightStore } from '../models/formats/index.ts'
import type { Precision } from '../models/quantised.ts'
import type { Tokenizer } from '../models/text/tokenizer.ts'
import type { Transform } from '../models/transforms/index.ts'
import { type Convert, weightsOf } from '../models/weights.ts'
import type { Device } from '../tensor/index.ts'
import { type CompileMode, ModelCore } from './core.ts'
import { Model } from './model.ts'
import { streams } from './stream.ts'

/** Options of {@link load}. */
export interface LoadOptions extends WorkOptions {
  /** Where programs run (default `cpu`). */
  readonly device?: Device
  /** Threads of the runtime (default: its own choice). */
  readonly threads?: number
  /** Number format of the matrices (default `f32`); `origin.checks` says what was kept and what was rounded. */
  readonly precision?: Precision
  /** Longest context to make room for (default: what the model was made for, at most 8192). */
  readonly contextLength?: number
  /** One session, one for each block, or what suits (default `auto`). */
  readonly compile?: CompileMode
  /** Bytes of compiled weights that may stay in memory (default: room for two copies where the machine has it, else one). */
  readonly memory?: number
  /**
   * Streams the weights from disk block by block, so that a model larger than memory runs: forward, edited, differentiated, writing. On by default
   * where the weights do not fit into `memory`, or into the machine. Without `memory`, three blocks are held.
   */
  readonly stream?: boolean
  /** Reads the config as another family's than it says; `declared` takes a family that is not listed by the facts in its config. */
  readonly family?: string
  /** Checks the identities that every decoder keeps, once for each checkpoint (default true); `origin.checks` says what was checked. */
  readonly selfCheck?: boolean
  /** Never use the network. */
  readonly offline?: boolean
}

/** The parts of a model, opened. */
export interface OpenedModel {
  readonly id: string
  readonly hash: () => Promise<string>
  readonly store: WeightStore
  readonly config: Config
  readonly tokenizer?: Tokenizer
  /** Its `preprocessor_config.json`. */
  readonly images?: Config
  /** What was checked while opening. */
  readonly checks?: readonly string[]
  /** The Hugging Face folder it lies in, whose tokenizer files are copied where the model is saved. */
  readonly folder?: string
  /** What was done to its weights, first to last. */
  readonly transforms?: readonly Transform[]
  /** The hash of the files themselves, where `hash` also tells what was done to their weights. */
  readonly baseHash?: () => Promise<string>
}

/** Bytes of memory that are free now; undefined where the place does not say. */
async function freeMemory(): Promise<number | undefined> {
  if (typeof process === 'undefined' || !process.versions?.node) return undefined
  return (await import('../base/node.ts')).os.freemem()
}

/** Bytes of compiled weights to keep: two copies where the machine has room, else one; several programs of a small model. */
function roomFor(weights: number, free: number | undefined): number {
  const copies = free !== undefined && free > 4 * weights ? 2.3 : 1.15
  return Math.max(copies * weights, Math.min((free ?? 0) / 8, 1e9)) + 64e6
}

/** Builds a model value from opened parts, refusing what does not fit together. */
export async function assemble(opened: OpenedModel, options: LoadOptions & { readonly convert?: Convert } = {}): Promise<Model> {
  const record = recordOf(opened.config, options.family)
  const architecture = architectureOf(record)
  const weights = await weightsOf(opened.store, architecture.read, options)
  const contextLength = contextOf(architecture, options.contextLength)
  const stream = await streams(weights.bytes, options)
  const memory = options.memory ?? (stream ? undefined : roomFor(weights.bytes, await freeMemory()))
  const core = new ModelCore(
    record,
    weights,
    {
      device: options.device ?? 'cpu',
      ...(options.threads ? { threads: options.threads } : {}),
      contextLength,
      ...(opened.images ? { images: opened.images } : {}),
      compile: options.compile ?? 'auto',
      memory,
      stream,
    },
    { opened, options },
  )
  // Tracing asks for every tensor by name and shape, so that a wrong checkpoint fails here and not in the numbers.
  core.trace({ cache: false, explicitPositions: false, slots: false, lastOnly: false })
  weights.checkAllRead(architecture.read)
  const checks = [
    ...(opened.checks ?? []),
    `all ${opened.store.tensors.size} tensors were read, with the shapes that the config asks for`,
    ...weights.checks,
    ...checkTokenizer(opened.tokenizer, architecture),
  ]
  return new Model(core, { id: opened.id, hash: opened.hash, checks, transforms: opened.transforms ?? [] })
}

function contextOf({ maxPositions, learnedPositions }: Architecture, wanted: number | undefined): number {
  if (wanted === undefined) return Math.min(maxPositions, 8192)
  if (!Number.isInteger(wanted) || wanted < 1) throw new ModelError(`contextLength must be a positive integer, not ${wanted}.`)
  if (learnedPositions !== undefined && wanted > learnedPositions)
    throw new ModelError(`contextLength is ${wanted}, but this model has learned ${learnedPositions} positions and no more.`)
  return wanted
}

function checkTokenizer(tokenizer: Tokenizer | undefined, { sequences }: Architecture): string[] {
  const read = sequences.find((s) => s.kind === 'tokens')
  if (!tokenizer || !read) return []
  const { vocab } = read
  const { vocabSize, special } = tokenizer
  const beyond = Array.from({ length: Math.min(Math.max(0, vocabSize - vocab), special.size + 1) }, (_, i) => vocab + i)
  // Special tokens are written by name only (Gemma 3 has one for images), so text cannot reach them; an ordinary token would be fed.
  if (!beyond.every((id) => special.has(id)))
    throw new FormatError(`The tokenizer has ${vocabSize} tokens, but the model's vocabulary has ${vocab}; it belongs to another model.`)
  const without = listed(beyond.map((id) => special.get(id) as string))
  return [
    beyond.length === 0
      ? `the tokenizer's ${vocabSize} tokens fit the vocabulary of ${vocab}`
      : `the vocabulary of ${vocab} has no row for ${beyond.length} special tokens of the tokenizer (${without}): texts with them are refused`,
  ]
}
