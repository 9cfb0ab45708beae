/** @file One training step as a program whose parameters and states stay in the runtime's arrays. */
import { ActlensError, messageOf, RuntimeFailure, UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { sizeOf } from '../base/types.ts'
import { keptLimit, Program, type ProgramOptions, type RunReport, SessionCache } from '../tensor/index.ts'
import { type ParameterSet, parameterInput } from './parameters.ts'
import {
  metricOutput,
  type StateSpec,
  type StepGraph,
  type StepOptions,
  squaresOutput,
  stepInput,
  stepScalars,
  traceStep,
} from './step-graph.ts'

/** Where a step runs. */
export interface RuntimeOptions {
  readonly device?: ProgramOptions['device']
  readonly threads?: number
  /** Shares sessions with other programs; one of its own by default, which {@link TrainingStep.dispose} empties. */
  readonly cache?: SessionCache
}

/** What one batch gave. */
export interface StepResult {
  readonly loss: number
  /** Length of all gradients together before clipping; undefined where gradients were only added up. */
  readonly gradientNorm: number | undefined
  /** What the model gave beside the loss. */
  readonly metrics: Readonly<Record<string, NDArray>>
  /** The first tensor found that is not finite, in words; undefined where all is well. */
  readonly notFinite: string | undefined
}

/** A batch: values of the model's inputs. */
export type Batch = Readonly<Record<string, NDArray>>

const scalarArray = (value: number): NDArray => ({ dtype: 'float32', shape: [], data: Float32Array.of(value) })

/** A compiled step: feeds a batch, updates parameters and states in place. */
export class TrainingStep implements AsyncDisposable {
  readonly parameters: ParameterSet
  /** Names of the trained parameters. */
  readonly trained: readonly string[]
  private readonly graph: StepGraph
  private readonly updating: Program
  private readonly gathering: Program | undefined
  private readonly looking: Program
  /** Parameters as they are fed: the same data, in pieces. */
  private readonly fed: Readonly<Record<string, NDArray<Float32Array>>>
  private readonly stateArrays: Readonly<Record<string, NDArray<Float32Array>>>
  private readonly sums: Readonly<Record<string, NDArray<Float32Array>>>
  private readonly scalars: Record<string, NDArray> = {}
  private readonly into: Readonly<Record<string, NDArray>>
  private readonly keep: number | undefined
  private lastReport: RunReport | undefined
  private readonly ownCache: SessionCache | undefined

  private constructor(
    options: StepOptions,
    graph: StepGraph,
    programs: readonly [Program, Program, Program | undefined],
    own: SessionCache | undefined,
  ) {
    this.parameters = options.parameters
    this.keep = keptLimit(options.saved)
    this.graph = graph
    this.trained = graph.trained
    ;[this.updating, this.looking, this.gathering] = programs
    this.ownCache = own
    const made = (specs: readonly StateSpec[]) =>
      Object.fromEntries(
        specs.map(({ key, shape }) => [key, { dtype: 'float32', shape, data: new Float32Array(sizeOf(shape)) } as NDArray<Float32Array>]),
      )
    this.fed = Object.fromEntries(
      [...graph.layouts].map(([name, shape]) => [parameterInput(name), { dtype: 'float32', shape, data: this.parameters.get(name).data }]),
    )
    this.stateArrays = made(graph.states)
    for (const [key, array] of Object.entries(this.stateArrays))
      if (key.startsWith('average/')) array.data.set(this.parameters.get(key.slice('average/'.length)).data)
    this.sums = made(graph.sums)
    this.into = {
      ...Object.fromEntries(graph.trained.map((n) => [parameterInput(n), this.fed[parameterInput(n)] as NDArray])),
      ...this.stateArrays,
    }
  }

  /** Traces and lowers a step; parameters that the model declares are made. */
  static async of(options: StepOptions, runtime: RuntimeOptions = {}): Promise<TrainingStep> {
    const graph = traceStep(options)
    const own = runtime.cache ? undefined : new SessionCache(Number.POSITIVE_INFINITY)
    const settings: ProgramOptions = {
      device: runtime.device ?? 'cpu',
      cache: runtime.cache ?? (own as SessionCache),
      ...(runtime.threads ? { threads: runtime.threads } : {}),
      // A step holds much at once, and a planned block would be held beside what the first step took.
      memoryPattern: false,
      segmented: options.saved !== undefined,
    }
    const updating = await Program.of(graph.update, settings)
    const gathering = graph.gather && (await Program.of(graph.gather, settings))
    const looking = await Program.of(graph.forward, settings)
    return new TrainingStep(options, graph, [updating, looking, gathering], own)
  }

  /** What the last update or gathering kept between the parts of the model; undefined before the first. */
  get report(): RunReport | undefined {
    return this.lastReport
  }

  /** Optimiser states and averages, by a key such as `adamw/w/mean`; the arrays are those that the next step writes over. */
  get states(): Readonly<Record<string, NDArray<Float32Array>>> {
    return this.stateArrays
  }

  /** The running averages of the parameters, in their own shapes; empty unless `average` was asked for. */
  get averages(): Record<string, NDArray<Float32Array>> {
    const kept = this.trained.filter((name) => `average/${name}` in this.stateArrays)
    return Object.fromEntries(
      kept.map((name) => [
        name,
        {
          dtype: 'float32' as const,
          shape: this.parameters.get(name).shape,
          data: (this.stateArrays[`average/${name}`] as NDArray<Float32Array>).data,
        },
      ]),
    )
  }

  /** The loss and the metrics of a batch, of which nothing is learnt; `step` is what models that count random numbers are told. */
  async evaluate(batch: Batch, step = 0): Promise<StepResult> {
    const out = await this.looking.run({ ...batch, ...this.fed, [stepInput]: this.stepNumber(step) })
    return this.result(out, batch, 1)
  }

  /** Adds up the gradients of a batch without an update. */
  async gather(batch: Batch, at: { readonly random: number; readonly lossScale?: number }): Promise<StepResult> {
    if (!this.gathering) throw new UsageError('This step does not accumulate gradients; ask for it with `accumulate`.')
    const lossScale = at.lossScale ?? 1
    const scalars = this.extra({ [stepScalars.lossScale]: lossScale }, this.gathering)
    const feeds = { ...batch, ...this.fed, ...this.sums, ...scalars, [stepInput]: this.stepNumber(at.random) }
    const out = await this.execute(this.gathering, feeds, this.sums)
    return this.result(out, batch, lossScale)
  }

  /**
   * One update from a batch and the gradients that were added up before.
   * @param at.rate the learning rate; `step` the number of the update from 1; `random` what models that count random numbers
   * are told, the step by default; `lossScale` the factor on the loss.
   */
  async update(
    batch: Batch,
    at: { readonly rate: number; readonly step: number; readonly random?: number; readonly lossScale?: number },
  ): Promise<StepResult> {
    const scale = at.lossScale ?? 1
    const scalars = this.extra({ ...this.graph.scalars(at), [stepScalars.lossScale]: scale }, this.updating)
    const feeds = {
      ...batch,
      ...this.fed,
      ...this.stateArrays,
      ...this.sums,
      ...scalars,
      [stepInput]: this.stepNumber(at.random ?? at.step),
    }
    const out = await this.execute(this.updating, feeds, this.into)
    for (const { data } of Object.values(this.sums)) data.fill(0)
    return this.result(out, batch, scale)
  }

  /** Frees the sessions, unless they are shared. */
  async dispose(): Promise<void> {
    await this.ownCache?.clear()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose()
  }

  private stepNumber(step: number): NDArray {
    return { dtype: 'int64', shape: [], data: BigInt64Array.of(BigInt(step)) }
  }

  /** The scalars that a program reads, in arrays that are used again. */
  private extra(values: Readonly<Record<string, number>>, program: Program): Record<string, NDArray> {
    const named: Record<string, NDArray> = {}
    for (const [name, value] of Object.entries(values)) {
      if (!program.inputs.has(name)) continue
      this.scalars[name] ??= scalarArray(0)
      const array = this.scalars[name]
      array.data[0] = value
      named[name] = array
    }
    return named
  }

  private async execute(
    program: Program,
    feeds: Record<string, NDArray>,
    into: Readonly<Record<string, NDArray>>,
  ): Promise<Record<string, NDArray>> {
    try {
      return await program.run(feeds, { into, keep: this.keep, onReport: (report) => (this.lastReport = report) })
    } catch (error) {
      // What we refuse ourselves is refused before anything runs.
      if (error instanceof ActlensError) throw error
      throw new RuntimeFailure(
        `A training step failed while it was writing parameters in place, so they may be half new: resume from the last checkpoint (${messageOf(error)}).`,
        { cause: error },
      )
    }
  }

  private result(out: Record<string, NDArray>, batch: Batch, scale: number): StepResult {
    const loss = Number(out.loss?.data[0])
    const squares = out[squaresOutput]?.data as Float32Array | undefined
    let total = 0
    for (const s of squares ?? []) total += s
    return {
      loss,
      gradientNorm: squares && Math.sqrt(total) / scale,
      metrics: Object.fromEntries(this.graph.metrics.map((m) => [m, out[metricOutput(m)] as NDArray])),
      notFinite: Number.isFinite(loss) && Number.isFinite(total) ? undefined : this.culprit(loss, squares, batch),
    }
  }

  /** What is not finite: an input first, then the loss, then the gradient nearest to the loss. */
  private culprit(loss: number, squares: Float32Array | undefined, batch: Batch): string {
    const bad = (array: NDArray) =>
      (array.data instanceof Float32Array || array.data instanceof Float64Array) && array.data.some((v) => !Number.isFinite(v))
    const given = Object.keys(batch).find((name) => bad(batch[name] as NDArray))
    if (given) return `the input '${given}'`
    if (!Number.isFinite(loss)) return 'the loss'
    const last = this.trained.findLast((_, i) => !Number.isFinite(squares?.[i]))
    return `the gradient of '${last}'`
  }
}
