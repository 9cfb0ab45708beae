/** @file A probe as a value: reads scores off activations, conditions edits, is saved and loaded. */
import { FormatError, ShapeError, UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { openSafetensors, writeSafetensors } from '../models/formats/index.ts'
import type { When } from '../sites/index.ts'
import type { Position } from '../steer/index.ts'
import { type ProbeKind, probeKinds, type Regularisation } from './kinds.ts'
import type { Calibration } from './metrics.ts'
import { predicted } from './metrics.ts'
import { type Features, type LinearFit, scoresOf } from './solver.ts'

/** How a probe was made. */
export interface ProbeRecord {
  readonly model: { readonly id: string; readonly hash: string; readonly family: string }
  readonly position: Position
  readonly regularisation: Regularisation
  readonly data: { readonly sha256: string; readonly examples: number; readonly groups: number }
  readonly edits: readonly unknown[]
  readonly precision: string
  readonly seed: number
  readonly versions: { readonly actlens: string; readonly runtime: string }
  /** Accuracy (R² of a regression) on examples that were held out. */
  readonly heldOut?: number
}

/** What a probe is made of. */
export interface ProbeParts {
  readonly kind: ProbeKind
  readonly site: string
  /** Names of the classes; none for a regression. */
  readonly classes: readonly string[]
  /** [outputs, width], in the units of the activations. */
  readonly weights: Float32Array
  /** [outputs] */
  readonly bias: Float32Array
  /** Mean and standard deviation of the activations that it learned from, [width] each; the weights have them built in. */
  readonly scaler: { readonly mean: Float32Array; readonly scale: Float32Array }
  readonly calibration?: Calibration
  readonly record: ProbeRecord
}

/** A linear read-out of a site: `scores = activation · weights + bias`. */
export class Probe implements ProbeParts {
  readonly kind: ProbeKind
  readonly site: string
  readonly classes: readonly string[]
  readonly weights: Float32Array
  readonly bias: Float32Array
  readonly scaler: ProbeParts['scaler']
  readonly calibration?: Calibration
  readonly record: ProbeRecord

  constructor(parts: ProbeParts) {
    this.kind = parts.kind
    this.site = parts.site
    this.classes = parts.classes
    this.weights = parts.weights
    this.bias = parts.bias
    this.scaler = parts.scaler
    if (parts.calibration) this.calibration = parts.calibration
    this.record = parts.record
    if (this.weights.length % this.bias.length !== 0 || this.bias.length === 0)
      throw new ShapeError(`A probe with ${this.bias.length} outputs cannot have ${this.weights.length} weights.`)
  }

  /** A probe from a fit on features that stand for activations of a site. */
  static fromFit(fit: LinearFit, parts: Omit<ProbeParts, 'weights' | 'bias'>): Probe {
    return new Probe({ ...parts, weights: Float32Array.from(fit.weights), bias: Float32Array.from(fit.bias) })
  }

  /** Number of scores for each activation: 1 for two classes and for numbers, else the number of classes. */
  get outputs(): number {
    return this.bias.length
  }

  /** Numbers of an activation. */
  get width(): number {
    return this.weights.length / this.outputs
  }

  /** Scores of activations [examples, width] (or one, [width]): [examples, outputs]; for two classes positive means the second. */
  async scores(activations: NDArray<Float32Array> | Float32Array): Promise<Float64Array> {
    const x = this.features(activations)
    const { outputs, width } = this
    const turned = new Float32Array(width * outputs)
    for (let k = 0; k < outputs; k++) for (let j = 0; j < width; j++) turned[j * outputs + k] = this.weights[k * width + j] as number
    const z = await scoresOf(x, turned, outputs)
    return Float64Array.from(z, (v, at) => v + (this.bias[at % outputs] as number))
  }

  /** Names of the classes that activations belong to; for a regression the numbers themselves. */
  async predict(activations: NDArray<Float32Array> | Float32Array): Promise<(string | number)[]> {
    const scores = await this.scores(activations)
    if (probeKinds[this.kind].regression) return [...scores]
    return Array.from(predicted(scores, this.outputs), (k) => this.classes[k] as string)
  }

  /** Calibrated probability of the second class, [examples]; refuses probes that were not calibrated. */
  async probabilities(activations: NDArray<Float32Array> | Float32Array): Promise<Float64Array> {
    const { calibration } = this
    if (!calibration)
      throw new UsageError('This probe has no calibration: only probes of two classes whose held-out scores were seen have one.')
    return (await this.scores(activations)).map((s) => 1 / (1 + Math.exp(-(calibration.slope * s + calibration.offset))))
  }

  /**
   * The probe as the condition of an edit or a tap (`where.when`): holds where the score exceeds `score` (default 0: the second class).
   * @throws UsageError for probes of several classes.
   */
  when(options: { readonly score?: number; readonly side?: 'above' | 'below' } = {}): When {
    if (this.outputs !== 1)
      throw new UsageError(`A condition is one direction, but this probe has ${this.outputs} outputs; train one class against the rest.`)
    const { score = 0, side = 'above' } = options
    const threshold = score - (this.bias[0] as number)
    return { site: this.site, vector: Float32Array.from(this.weights), ...(side === 'above' ? { above: threshold } : { below: threshold }) }
  }

  private features(activations: NDArray<Float32Array> | Float32Array): Features {
    const x: Features =
      activations instanceof Float32Array ? { dtype: 'float32', shape: [1, activations.length], data: activations } : activations
    const rows = x.shape[0] as number
    if (x.data.length !== rows * this.width)
      throw new ShapeError(
        `The probe of '${this.site}' reads ${this.width} numbers, but the activations have the shape [${x.shape.join(', ')}].`,
      )
    return { dtype: 'float32', shape: [rows, this.width], data: x.data }
  }
}

/** Version of the files that {@link saveProbes} writes. */
const probeFormat = 'actlens-probe/1'

/**
 * Writes probes to one safetensors file: for each site `SITE.weights` [outputs, width], `SITE.bias` [outputs], `SITE.mean` and
 * `SITE.scale` [width]; the metadata `actlens` is JSON with kind, classes, calibration and record of each.
 */
export async function saveProbes(path: string, probes: readonly Probe[]): Promise<void> {
  const tensors: Record<string, NDArray> = {}
  const put = (name: string, shape: readonly number[], data: Float32Array) => {
    tensors[name] = { dtype: 'float32', shape, data }
  }
  for (const p of probes) {
    put(`${p.site}.weights`, [p.outputs, p.width], p.weights)
    put(`${p.site}.bias`, [p.outputs], p.bias)
    put(`${p.site}.mean`, [p.width], p.scaler.mean)
    put(`${p.site}.scale`, [p.width], p.scaler.scale)
  }
  const facts = probes.map(({ site, kind, classes, calibration, record }) => ({
    site,
    kind,
    classes,
    ...(calibration ? { calibration } : {}),
    record,
  }))
  await writeSafetensors(path, tensors, { format: probeFormat, actlens: JSON.stringify(facts) })
}

/**
 * Reads the probes of a file.
 * @throws FormatError where the file is none of ours, or damaged.
 */
export async function loadProbes(path: string): Promise<Probe[]> {
  const store = await openSafetensors(path)
  try {
    if (store.metadata.get('format') !== probeFormat)
      throw new FormatError(`${path} is no file of probes ('${probeFormat}'); write one with 'actlens probe … --out'.`)
    const facts = JSON.parse(String(store.metadata.get('actlens'))) as Omit<ProbeParts, 'weights' | 'bias' | 'scaler'>[]
    const probes: Probe[] = []
    for (const fact of facts) {
      if (!Object.hasOwn(probeKinds, fact.kind))
        throw new FormatError(`${path} holds a probe of the unknown kind '${fact.kind}'; update actlens.`)
      const read = (part: string) => store.readFloat32(`${fact.site}.${part}`)
      const scaler = { mean: await read('mean'), scale: await read('scale') }
      probes.push(new Probe({ ...fact, weights: await read('weights'), bias: await read('bias'), scaler }))
    }
    return probes
  } finally {
    await store.close()
  }
}
