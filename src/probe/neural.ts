/** @file Probes that are no straight line: quadratic, a small network, and attention over the tokens of a text; trained by the training loop, judged as linear ones are. */
import { listed, ShapeError, throwIfCancelled, UsageError } from '../base/errors.ts'
import type { WorkOptions } from '../base/progress.ts'
import type { NDArray } from '../base/types.ts'
import {
  adamW,
  batches,
  crossEntropy,
  initialisers,
  linear,
  linearRate,
  mse,
  ParameterSet,
  parameterInput,
  Scope,
  tensorDataset,
  train,
} from '../nn/index.ts'
import type { Model } from '../run/index.ts'
import {
  add,
  input,
  matmul,
  mul,
  Program,
  relu,
  SessionCache,
  softmax,
  squeeze,
  sub,
  sum,
  type Tensor,
  unsqueeze,
} from '../tensor/index.ts'
import { shuffledTargets } from './controls.ts'
import { readFeatures } from './features.ts'
import { accuracyOf, aurocOf, bootstrap, type Estimate, type Measure, predicted, r2Of } from './metrics.ts'
import type { ProbeOptions } from './study.ts'
import { prepare, type Study } from './study-setup.ts'

/** What a kind makes of activations x [batch, token, width], of which `seen` [batch, token] is 1 where a token is: [batch, outputs]. */
interface NeuralKind {
  readonly doc: string
  /** It reads all tokens of a text, not one. */
  readonly tokens?: true
  readonly build: (scope: Scope, x: Tensor, seen: Tensor, outputs: number, hidden: number) => Tensor
}

const only = (x: Tensor) => squeeze(x, 1)

/** The kinds of probes that are no straight line. */
export const neuralKinds = {
  mlp: {
    doc: 'One hidden layer of rectified units.',
    build: (scope, x, _, outputs, hidden) => linear(scope.in('out'), relu(linear(scope.in('hidden'), only(x), hidden)), outputs),
  },
  quadratic: {
    doc: 'A linear form and a quadratic one of low rank: w·x + Σᵣ sᵣ (uᵣ·x)².',
    build: (scope, x, _, outputs, hidden) => {
      const along = linear(scope.in('along'), only(x), hidden, { bias: false })
      return add(linear(scope.in('linear'), only(x), outputs), linear(scope.in('square'), mul(along, along), outputs, { bias: false }))
    },
  },
  attention: {
    doc: 'A linear read-out of the tokens, weighted by attention that is learned: Σₜ softmax(q·xₜ) xₜ.',
    tokens: true,
    build: (scope, x, seen, outputs) => {
      const width = x.shape.at(-1) as number
      const query = scope.parameter('query', [width, 1], initialisers.zeros)
      const scores = add(squeeze(matmul(x, query), -1), mul(sub(seen, 1), 1e9))
      return linear(scope.in('out'), sum(mul(x, unsqueeze(softmax(scores), -1)), [1]), outputs)
    },
  },
} as const satisfies Readonly<Record<string, NeuralKind>>

/** Names of these kinds. */
export type NeuralProbeKind = keyof typeof neuralKinds

/** Options of {@link neuralProbe}. */
export interface NeuralProbeOptions
  extends Pick<ProbeOptions, 'texts' | 'labels' | 'groups' | 'position' | 'balanced' | 'folds' | 'seed' | 'samples' | 'controls'>,
    WorkOptions {
  readonly kind: NeuralProbeKind
  readonly site: string
  /** Labels are numbers. */
  readonly regression?: boolean
  /** Units of the hidden layer, or rank of the quadratic form; 32 by default. */
  readonly hidden?: number
  /** Steps of training (300), examples of a batch (64), learning rate (3e-3, falling to zero) and decay of AdamW (0.1). */
  readonly steps?: number
  readonly batch?: number
  readonly rate?: number
  readonly weightDecay?: number
}

/** A trained probe: scores of activations. */
export class NeuralProbe {
  readonly kind: NeuralProbeKind
  readonly site: string
  /** Names of the classes; none for a regression. */
  readonly classes: readonly string[]
  /** By name; `scaler.mean` and `scaler.scale` [width] are those of what it learned from. */
  readonly parameters: Readonly<Record<string, NDArray<Float32Array>>>
  private readonly hidden: number

  constructor(parts: Pick<NeuralProbe, 'kind' | 'site' | 'classes' | 'parameters'> & { readonly hidden: number }) {
    this.kind = parts.kind
    this.site = parts.site
    this.classes = parts.classes
    this.parameters = parts.parameters
    this.hidden = parts.hidden
  }

  /** Scores [examples, outputs] of activations [examples, width], or [examples, tokens, width] with the tokens that are there, for attention. */
  async scores(x: NDArray<Float32Array>, seen?: NDArray<Float32Array>): Promise<Float64Array> {
    const wide = x.shape.length === 2 ? { ...x, shape: [x.shape[0] as number, 1, x.shape[1] as number] } : x
    const [n, tokens, width] = wide.shape as [number, number, number]
    if (width !== this.parameters['scaler.mean']?.data.length)
      throw new ShapeError(`The probe of '${this.site}' reads ${this.parameters['scaler.mean']?.data.length} numbers, not ${width}.`)
    const set = ParameterSet.from(this.parameters)
    const outputs = Math.max(this.classes.length, 1)
    const shape = ['batch', 'tokens', width] as const
    const given = input('seen', 'float32', ['batch', 'tokens'])
    const logits = forward(
      new Scope(set),
      this.kind,
      input('x', 'float32', this.kind === 'attention' ? shape : ['batch', 1, width]),
      given,
      outputs,
      this.hidden,
    )
    const program = await Program.of({ logits }, { device: 'cpu', cache: new SessionCache(0) })
    const feeds: Record<string, NDArray> = {
      x: wide,
      seen: seen ?? { dtype: 'float32', shape: [n, tokens], data: new Float32Array(n * tokens).fill(1) },
      ...Object.fromEntries([...set].map(([name, p]) => [parameterInput(name), p])),
    }
    const out = await program.run(Object.fromEntries(Object.entries(feeds).filter(([name]) => program.inputs.has(name))))
    return Float64Array.from(out.logits?.data as Float32Array)
  }
}

function forward(scope: Scope, kind: NeuralProbeKind, x: Tensor, seen: Tensor, outputs: number, hidden: number): Tensor {
  const width = x.shape.at(-1) as number
  const mean = scope.parameter('scaler.mean', [width], initialisers.zeros)
  const scale = scope.parameter('scaler.scale', [width], initialisers.ones)
  const row: NeuralKind = neuralKinds[kind]
  return row.build(scope, mul(sub(x, mean), scale), seen, outputs, hidden)
}

/** What a study of such a probe finds. */
export interface NeuralProbeResult {
  readonly kind: NeuralProbeKind
  readonly site: string
  readonly classes: readonly string[]
  /** On held-out texts, with 95 % intervals. */
  readonly scores: Readonly<Record<string, Estimate>>
  /** The same number with labels dealt anew among the source texts. */
  readonly controls: Readonly<Record<string, number>>
  /** The score above that control. */
  readonly selectivity?: number
  readonly probe: NeuralProbe
  readonly warnings: readonly string[]
}

interface Examples {
  readonly x: NDArray<Float32Array>
  readonly seen: NDArray<Float32Array>
}

/** Most bytes of activations of single tokens that are held. */
const mostBytes = 2 ** 30

/** Trains a probe that is no straight line at one site and judges it by cross-validation grouped by source text. */
export async function neuralProbe(model: Model, options: NeuralProbeOptions): Promise<NeuralProbeResult> {
  const { kind, texts, labels, signal, onProgress } = options
  if (!Object.hasOwn(neuralKinds, kind))
    throw new UsageError(`There is no kind of probe '${kind}' here; choose ${listed(Object.keys(neuralKinds))}.`)
  if (texts.length !== labels.length)
    throw new UsageError(`There are ${texts.length} texts, but ${labels.length} labels; give one for each.`)
  const keys = options.groups ?? texts.map((t) => (typeof t === 'string' ? t : t.join()))
  const settings = {
    balanced: options.balanced,
    folds: options.folds,
    seed: options.seed,
    samples: options.samples,
    controls: options.controls,
  }
  const given = Object.fromEntries(Object.entries(settings).filter(([, v]) => v !== undefined))
  const study = prepare(labels, keys, { kind: options.regression ? 'regression' : 'logistic', C: 1, ...given })
  const site = model.site(options.site).site
  const examples = await examplesOf(model, site, options)
  const total = study.foldCount * (study.controls ? 2 : 1) + 1
  let done = 0
  const told = async (targets: Float64Array) => {
    const outputs = Math.max(study.classes.length, 1)
    const scores = new Float64Array(texts.length * outputs)
    for (let f = 0; f < study.foldCount; f++) {
      throwIfCancelled(signal)
      const held = [...study.folds.keys()].filter((i) => study.folds[i] === f)
      const learned = await fitOne(examples, study, targets, (i) => study.folds[i] !== f, site, options)
      const part = pick(examples, held)
      const own = await learned.scores(part.x, part.seen)
      for (const [at, i] of held.entries()) scores.set(own.subarray(at * outputs, (at + 1) * outputs), i * outputs)
      onProgress?.({ task: `training ${kind} probes`, done: ++done, total, unit: 'fits' })
    }
    return scores
  }
  const measures = (scores: Float64Array, targets: Float64Array): Record<string, Measure> =>
    study.row.regression
      ? { r2: r2Of(scores, targets) }
      : { accuracy: accuracyOf(predicted(scores, study.classes.length), targets), auroc: aurocOf(scores, study.classes.length, targets) }
  const scores = bootstrap(measures(await told(study.targets), study.targets), study.groups, {
    samples: study.samples,
    seed: study.seed,
  }) as Record<string, Estimate>
  const controls: Record<string, number> = {}
  if (study.controls) {
    const dealt = shuffledTargets(study)
    const measure = measures(await told(dealt), dealt)[study.main]
    controls.shuffledLabels = measure?.(new Int32Array(texts.length).fill(1)) as number
  }
  const learned = await fitOne(examples, study, study.targets, () => true, site, options)
  onProgress?.({ task: `training ${kind} probes`, done: total, total, unit: 'fits' })
  const main = scores[study.main]?.value as number
  const width = examples.x.shape[2] as number
  return {
    kind,
    site,
    classes: study.classes,
    scores,
    controls,
    ...(controls.shuffledLabels === undefined ? {} : { selectivity: main - controls.shuffledLabels }),
    probe: learned,
    warnings:
      texts.length < width
        ? [
            `There are ${texts.length} examples, fewer than the ${width} features: such a probe can fit any labels, so trust only held-out scores and controls.`,
          ]
        : [],
  }
}

/** Activations of one token of each text, or of all. */
async function examplesOf(model: Model, site: string, options: NeuralProbeOptions): Promise<Examples> {
  const { texts, kind, signal } = options
  if (!('tokens' in neuralKinds[kind])) {
    const { sites } = await readFeatures(model, { ...options, site })
    const x = sites.get(site) as NDArray<Float32Array>
    const [n, width] = x.shape as [number, number]
    return { x: { ...x, shape: [n, 1, width] }, seen: { dtype: 'float32', shape: [n, 1], data: new Float32Array(n).fill(1) } }
  }
  if (options.position !== undefined) throw new UsageError('A probe with attention reads all tokens of a text; leave position out.')
  const rows = texts.map((t, i) => {
    const ids = typeof t === 'string' ? (model.tokens(t).rows[0] as readonly number[]) : t
    if (ids.length === 0) throw new UsageError(`Text ${i} is empty; give each example a text.`)
    return ids.slice(0, model.contextLength)
  })
  const tokens = rows.reduce((m, r) => Math.max(m, r.length), 0)
  const width = model.shapeOf(model.site(site)).at(-1) as number
  if (rows.length * tokens * width * 4 > mostBytes)
    throw new UsageError(
      `The activations of ${rows.length} texts of up to ${tokens} tokens take more than 1 GiB; give fewer or shorter texts.`,
    )
  const x = new Float32Array(rows.length * tokens * width)
  const seen = new Float32Array(rows.length * tokens)
  for (let from = 0; from < rows.length; from += 16) {
    throwIfCancelled(signal)
    const part = rows.slice(from, from + 16)
    const { taps } = await model.run({ rows: part }, { taps: [site], logits: false, signal })
    for (const [b, row] of part.entries()) {
      const own = taps[site]?.row(b)
      x.set(own?.data as Float32Array, (from + b) * tokens * width)
      seen.fill(1, (from + b) * tokens, (from + b) * tokens + row.length)
    }
  }
  return {
    x: { dtype: 'float32', shape: [rows.length, tokens, width], data: x },
    seen: { dtype: 'float32', shape: [rows.length, tokens], data: seen },
  }
}

function pick({ x, seen }: Examples, rows: readonly number[]): Examples {
  const take = ({ shape, data }: NDArray<Float32Array>): NDArray<Float32Array> => {
    const size = data.length / (shape[0] as number)
    const out = new Float32Array(rows.length * size)
    for (const [at, i] of rows.entries()) out.set(data.subarray(i * size, (i + 1) * size), at * size)
    return { dtype: 'float32', shape: [rows.length, ...shape.slice(1)], data: out }
  }
  return { x: take(x), seen: take(seen) }
}

async function fitOne(
  examples: Examples,
  study: Study,
  targets: Float64Array,
  kept: (example: number) => boolean,
  site: string,
  { kind, hidden = 32, steps = 300, batch = 64, rate = 3e-3, weightDecay = 0.1, signal }: NeuralProbeOptions,
): Promise<NeuralProbe> {
  const rows = [...targets.keys()].filter(kept)
  const { x, seen } = pick(examples, rows)
  const [n, tokens, width] = x.shape as [number, number, number]
  const { regression } = study.row
  const outputs = Math.max(study.classes.length, 1)
  const counts = study.classes.map((_, k) => rows.filter((i) => targets[i] === k).length)
  const weights = Float32Array.from(rows, (i) =>
    study.balanced && !regression ? n / (outputs * (counts[targets[i] as number] as number)) : 1,
  )
  const wanted: NDArray = regression
    ? { dtype: 'float32', shape: [n, 1], data: Float32Array.from(rows, (i) => targets[i] as number) }
    : { dtype: 'int64', shape: [n], data: BigInt64Array.from(rows, (i) => BigInt(targets[i] as number)) }
  const parameters = ParameterSet.from(scalerOf(x, seen))
  const size = Math.min(batch, n)
  await train({
    model: (inputs, scope) => {
      const said = forward(scope, kind, inputs.x as Tensor, inputs.seen as Tensor, outputs, hidden)
      return regression
        ? mse(said, inputs.wanted as Tensor)
        : crossEntropy(said, inputs.wanted as Tensor, { mask: inputs.weights as Tensor })
    },
    inputs: {
      x: { dtype: 'float32', shape: [size, tokens, width] },
      seen: { dtype: 'float32', shape: [size, tokens] },
      wanted: { dtype: wanted.dtype, shape: regression ? [size, 1] : [size] },
      weights: { dtype: 'float32', shape: [size] },
    },
    data: batches(tensorDataset({ x, seen, wanted, weights: { dtype: 'float32', shape: [n], data: weights } }), {
      batch: size,
      seed: study.seed,
    }),
    parameters,
    trainable: (name) => !name.startsWith('scaler.'),
    optimizer: adamW({ weightDecay }),
    rate: linearRate(rate, { steps }),
    steps,
    seed: study.seed,
    ...(signal ? { signal } : {}),
  })
  return new NeuralProbe({ kind, site, classes: study.classes, parameters: parameters.copy(), hidden })
}

/** Mean, and one over the standard deviation, of the tokens that are there. */
function scalerOf({ shape, data }: NDArray<Float32Array>, seen: NDArray<Float32Array>): Record<string, NDArray> {
  const width = shape[2] as number
  const [first, second] = [new Float64Array(width), new Float64Array(width)]
  let count = 0
  for (const [t, there] of seen.data.entries()) {
    if (there === 0) continue
    count++
    for (let j = 0; j < width; j++) {
      const v = data[t * width + j] as number
      first[j] = (first[j] as number) + v
      second[j] = (second[j] as number) + v * v
    }
  }
  const mean = Float32Array.from(first, (s) => s / count)
  const scale = Float32Array.from(second, (s, j) => 1 / Math.sqrt(Math.max(s / count - (mean[j] as number) ** 2, 0) + 1e-6))
  const of = (values: Float32Array): NDArray => ({ dtype: 'float32', shape: [width], data: values })
  return { 'scaler.mean': of(mean), 'scaler.scale': of(scale) }
}
