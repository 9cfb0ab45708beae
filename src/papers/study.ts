/** @file What a repeat is given: its seed, models, cached steps, and a place for progress. */
import { existsSync } from 'node:fs'
import { readFile, rm } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { throwIfCancelled } from '../base/errors.ts'
import { homeFolders, makeFolder, writeFileWhole } from '../base/files.ts'
import { sha256 } from '../base/hash.ts'
import type { OnProgress, WorkOptions } from '../base/progress.ts'
import { checkpointFolder } from '../run/checkpoints.ts'
import { type DecoderTraining, load, type Model, saveDecoder, trainDecoder } from '../run/index.ts'
import { canonicalJson } from '../steer/record.ts'

/** What can be written down as JSON. */
export type Json = string | number | boolean | null | readonly Json[] | { readonly [key: string]: Json }

/** Settings of a run that every repeat shares. */
export interface StudyOptions extends WorkOptions {
  readonly slug: string
  readonly revision: number
  readonly seed: number
  readonly quick: boolean
  /** The user's own model, where one was given. */
  readonly model?: string
  readonly threads?: number
  /** Runs every step anew, whatever the cache holds. */
  readonly fresh?: boolean
  /** Folder of data sets too large to ship; steps that need one ask {@link Study.data}. */
  readonly dataFolder?: string
}

/** A small model to be trained, or found trained. */
export interface SmallModel extends Omit<DecoderTraining, 'seed' | 'signal' | 'onProgress' | 'checkpoints' | 'runtime'> {
  /** Everything that the data depend on, for the cache's key: names, sizes, seeds, probabilities. */
  readonly recipe: Json
}

/** One repeat at work. */
export class Study {
  readonly slug: string
  /** Seed of this repeat; all that is random derives from it. */
  readonly seed: number
  /** A smoke run: smaller numbers of everything, under a minute. */
  readonly quick: boolean
  readonly threads: number | undefined
  readonly signal: AbortSignal | undefined
  readonly onProgress: OnProgress | undefined
  private readonly options: StudyOptions
  private readonly open = new Map<string, Promise<Model>>()

  constructor(options: StudyOptions) {
    this.options = options
    this.slug = options.slug
    this.seed = options.seed
    this.quick = options.quick
    this.threads = options.threads
    this.signal = options.signal
    this.onProgress = options.onProgress
  }

  /** Options for work that reports and can be stopped. */
  get work(): WorkOptions {
    return { ...(this.signal ? { signal: this.signal } : {}), ...(this.onProgress ? { onProgress: this.onProgress } : {}) }
  }

  /** The full value, or the smaller one of a quick run. */
  size<T>(full: T, quick: T): T {
    return this.quick ? quick : full
  }

  /** Whether the user brought a model of their own. */
  get hasOwnModel(): boolean {
    return this.options.model !== undefined
  }

  /** The user's model, or the default one; loaded once, freed with the study. */
  model(otherwise = 'embedded'): Promise<Model> {
    return this.opened(this.options.model ?? otherwise)
  }

  /** A model by its name, loaded once, freed with the study. */
  opened(id: string): Promise<Model> {
    let model = this.open.get(id)
    if (!model) {
      model = load(id, { ...this.work, ...(this.threads ? { threads: this.threads } : {}) })
      this.open.set(id, model)
    }
    return model
  }

  /**
   * The result of expensive work, kept by its content: the same name, inputs and revision give the stored result.
   * @param inputs everything that the result depends on beside the paper's revision and the seed.
   */
  async step<T>(name: string, inputs: Json, work: () => Promise<T>): Promise<T> {
    throwIfCancelled(this.signal)
    const path = join(studyFolder(this.slug), `${await this.key(name, inputs)}.json`)
    if (!this.options.fresh && existsSync(path)) return JSON.parse(await readFile(path, 'utf8'), reviveNumbers) as T
    this.onProgress?.({ task: name, done: 0, unit: 'steps' })
    const result = await work()
    throwIfCancelled(this.signal)
    await write(path, JSON.stringify(result, keepNumbers))
    return result
  }

  /** A small model trained from a seeded generator; found in the cache where it was trained before. An interrupted training goes on. */
  async trained(name: string, model: SmallModel): Promise<Model> {
    const folder = await this.trainedFolder(name, model)
    if (this.options.fresh || !existsSync(join(folder, 'config.json'))) {
      const { recipe: _, ...training } = model
      const half = `${folder}.training`
      const report = this.onProgress
      const trained = await trainDecoder({
        ...training,
        seed: this.seed,
        checkpoints: {
          files: checkpointFolder(half),
          every: Math.max(50, Math.ceil(model.steps / 10)),
          keep: 1,
          ...(this.options.fresh ? {} : { resume: 'newest' }),
        },
        ...(this.threads ? { runtime: { threads: this.threads } } : {}),
        ...(this.signal ? { signal: this.signal } : {}),
        ...(report ? { onProgress: (p) => report({ ...p, task: `${name}: ${p.task}` }) } : {}),
      })
      await saveDecoder(folder, trained)
      await rm(half, { recursive: true, force: true })
    }
    return this.opened(folder)
  }

  /** Where a small model is kept. */
  private async trainedFolder(name: string, { recipe, config, steps, data: _, from: __, ...rest }: SmallModel): Promise<string> {
    const plain = Object.fromEntries(Object.entries(rest).filter(([, v]) => typeof v !== 'function' && typeof v !== 'object')) as Json
    return join(studyFolder(this.slug), `${await this.key(name, { recipe, config: config as Json, steps, ...(plain as object) })}`)
  }

  /** A data set too large to ship: its path, or undefined where it is not there. */
  data(path: string): string | undefined {
    const folder = this.options.dataFolder ?? process.env.ACTLENS_DATA
    const found = folder === undefined ? undefined : resolve(folder, path)
    return found !== undefined && existsSync(found) ? found : undefined
  }

  private async key(name: string, inputs: Json): Promise<string> {
    const { revision, seed, quick } = this.options
    const model = this.options.model ?? null
    const digest = await sha256(canonicalJson({ name, inputs, revision, seed, quick, model }))
    return `${name.replace(/[^\w]+/g, '-').toLowerCase()}-${digest.slice(0, 16)}`
  }

  /** Frees the models. */
  async dispose(): Promise<void> {
    for (const model of this.open.values()) await model.then((m) => m.dispose()).catch(() => undefined)
    this.open.clear()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }
}

/** Where the steps and small models of a paper are kept. */
export const studyFolder = (slug: string): string => join(homeFolders().cache, 'papers', slug)

async function write(path: string, text: string): Promise<void> {
  await makeFolder(dirname(path))
  await writeFileWhole(path, text)
}

// JSON has no word for these numbers, and a step that overflowed must come back as it was.
const special: Readonly<Record<string, number>> = { '\u0000NaN': Number.NaN, '\u0000Infinity': Infinity, '\u0000-Infinity': -Infinity }
const keepNumbers = (_: string, v: unknown): unknown => {
  if (typeof v === 'number' && !Number.isFinite(v)) return `\u0000${v}`
  return ArrayBuffer.isView(v) && !(v instanceof DataView) ? Array.from(v as unknown as ArrayLike<number>) : v
}
const reviveNumbers = (_: string, v: unknown): unknown => (typeof v === 'string' && Object.hasOwn(special, v) ? special[v] : v)
