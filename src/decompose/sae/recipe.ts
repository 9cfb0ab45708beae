/** @file The settings of training a sparse autoencoder, with the defaults of the field for each kind. */
import { nearest, UsageError } from '../../base/errors.ts'

/** Kinds that can be trained. */
export const trainingKinds = ['standard', 'topk', 'batchtopk', 'matryoshka', 'jumprelu', 'gated'] as const
/** A kind of training. */
export type TrainingKind = (typeof trainingKinds)[number]

/** What is done to activations before they are encoded. */
export type TrainingScale = 'none' | 'expected_average_only_in' | 'constant_norm_rescale' | 'layer_norm'

/** Latents that died are set to inputs that are rebuilt badly (Bricken et al. 2023). */
export interface Resampling {
  /** Steps between two resamplings, and the last step at which one happens. */
  readonly every: number
  readonly until: number
}

/** How to train. */
export interface SaeOptions {
  /** Default `topk`. */
  readonly kind?: TrainingKind
  /** Number of latents (default: 8 times the width of the site). */
  readonly width?: number
  /** Active latents of a row: of topk; on average of batchtopk and matryoshka (default 32). */
  readonly k?: number
  /** Nested widths of matryoshka, the last one all latents (default: an eighth, a quarter, a half, all). */
  readonly groups?: readonly number[]
  /**
   * `unit`: decoder rows of length one, by projected gradients and renormalising (dictionary_learning, OpenAI; default of topk,
   * batchtopk and gated). `free`: their length enters the penalty, or the choice of the k largest (SAELens; default of the others).
   */
  readonly decoder?: 'unit' | 'free'
  /** b_dec is taken off the input before encoding (default true; false for jumprelu). */
  readonly subtractsBias?: boolean
  /** Coefficient of the sparsity penalty, on squared errors that are summed over the width. */
  readonly sparsity?: number
  /** Steps over which the coefficient rises from zero (default: 5 % of all steps). */
  readonly sparsityWarmup?: number
  /** Scale of the inputs (default `expected_average_only_in`: mean length √d, folded into the weights at the end). */
  readonly scale?: TrainingScale
  /** Peak learning rate (default: 2e-4 / √(width / 16384) for those that keep k, else 3e-4). */
  readonly rate?: number
  /** Steps of rising rate (default 0 or a hundredth of all), and the share of steps over which it falls to zero at the end (default 0.2). */
  readonly warmup?: number
  readonly decay?: number
  /** Adam's momenta (default 0.9, 0.999). */
  readonly betas?: readonly [number, number]
  /** Largest length of all gradients together (default 1); false leaves them as they are. */
  readonly clip?: number | false
  /** Coefficient of the auxiliary loss that revives dead latents (default: 1/32 with unit rows, 1 with free ones, for kinds that keep k; else 0). */
  readonly aux?: number
  /** Dead latents that may rebuild a row (default: half the width of the site). */
  readonly auxK?: number
  /** Steps without firing after which a latent counts as dead (default: a twentieth of all steps, from 20 to 1000). */
  readonly deadAfter?: number
  readonly resample?: Resampling
  /** jumprelu: width of the window in which thresholds learn, first threshold, and L0 to be reached instead of a plain penalty. */
  readonly bandwidth?: number
  readonly firstThreshold?: number
  readonly targetL0?: number
  /** jumprelu: what is penalised, steps or tanh of 4 · activation (default `step`). */
  readonly penalty?: 'step' | 'tanh'
  /** How fast the inference threshold of batchtopk and matryoshka follows the batches (default 0.01). */
  readonly thresholdRate?: number
}

/** Settings with nothing left open. */
export interface SaeRecipe {
  readonly kind: TrainingKind
  readonly width: number
  readonly k?: number
  readonly groups?: readonly number[]
  readonly decoder: 'unit' | 'free'
  readonly decoderNorm: number
  readonly rescales: boolean
  readonly subtractsBias: boolean
  readonly sparsity: number
  readonly sparsityWarmup: number
  readonly scale: TrainingScale
  readonly rate: number
  readonly warmup: number
  readonly decay: number
  readonly betas: readonly [number, number]
  readonly clip: number | false
  readonly aux: number
  readonly auxK: number
  readonly deadAfter: number
  readonly resample?: Resampling
  readonly bandwidth: number
  readonly firstThreshold: number
  readonly targetL0?: number
  readonly penalty: 'step' | 'tanh'
  readonly thresholdRate: number
}

interface KindDefaults {
  readonly keepsK: boolean
  readonly decoder: 'unit' | 'free'
  /** Coefficient of sparsity with unit and with free rows. */
  readonly sparsity: readonly [unit: number, free: number]
  readonly subtractsBias: boolean
}

/** Defaults by kind; coefficients are for inputs of mean length √d. */
const kinds: Readonly<Record<TrainingKind, KindDefaults>> = {
  standard: { keepsK: false, decoder: 'free', sparsity: [5, 5], subtractsBias: true },
  topk: { keepsK: true, decoder: 'unit', sparsity: [0, 0], subtractsBias: true },
  batchtopk: { keepsK: true, decoder: 'unit', sparsity: [0, 0], subtractsBias: true },
  matryoshka: { keepsK: true, decoder: 'unit', sparsity: [0, 0], subtractsBias: true },
  jumprelu: { keepsK: false, decoder: 'free', sparsity: [1, 1], subtractsBias: false },
  gated: { keepsK: false, decoder: 'unit', sparsity: [5, 5], subtractsBias: true },
}

/**
 * Settings for a site of a width and a number of steps.
 * @throws UsageError for what contradicts itself or means nothing for the kind.
 */
export function recipeOf(options: SaeOptions, dIn: number, steps: number): SaeRecipe {
  const kind = options.kind ?? 'topk'
  if (!trainingKinds.includes(kind)) {
    const near = nearest(kind, trainingKinds)
    throw new UsageError(`There is no kind '${kind}'${near ? `; did you mean '${near}'?` : `; kinds are ${trainingKinds.join(', ')}.`}`)
  }
  const row = kinds[kind]
  const width = options.width ?? 8 * dIn
  const decoder = options.decoder ?? row.decoder
  const unit = decoder === 'unit'
  refuseUnused(options, kind)
  const k = row.keepsK ? (options.k ?? 32) : undefined
  const groups = kind === 'matryoshka' ? (options.groups ?? [8, 4, 2, 1].map((n) => Math.floor(width / n))) : undefined
  const recipe: SaeRecipe = {
    kind,
    width,
    ...(k === undefined ? {} : { k }),
    ...(groups ? { groups } : {}),
    decoder,
    decoderNorm: unit ? 1 : 0.1,
    rescales: row.keepsK && !unit,
    subtractsBias: options.subtractsBias ?? row.subtractsBias,
    sparsity: options.sparsity ?? row.sparsity[unit ? 0 : 1],
    sparsityWarmup: options.sparsityWarmup ?? Math.round(0.05 * steps),
    scale: options.scale ?? 'expected_average_only_in',
    rate: options.rate ?? (row.keepsK ? 2e-4 / Math.sqrt(width / 16384) : 3e-4),
    warmup: options.warmup ?? Math.min(1000, Math.round(0.01 * steps)),
    decay: options.decay ?? 0.2,
    betas: options.betas ?? [0.9, 0.999],
    clip: options.clip ?? 1,
    aux: options.aux ?? (row.keepsK ? (unit ? 1 / 32 : 1) : 0),
    auxK: Math.max(1, options.auxK ?? Math.min(Math.floor(dIn / 2), width)),
    deadAfter: options.deadAfter ?? Math.min(1000, Math.max(20, Math.round(steps / 20))),
    ...(options.resample ? { resample: options.resample } : {}),
    bandwidth: options.bandwidth ?? 0.05,
    firstThreshold: options.firstThreshold ?? 0.01,
    ...(options.targetL0 === undefined ? {} : { targetL0: options.targetL0 }),
    penalty: options.penalty ?? 'step',
    thresholdRate: options.thresholdRate ?? 0.01,
  }
  check(recipe)
  return recipe
}

/** Options that only some kinds have. */
const only: Readonly<Partial<Record<keyof SaeOptions, readonly TrainingKind[]>>> = {
  k: ['topk', 'batchtopk', 'matryoshka'],
  groups: ['matryoshka'],
  sparsity: ['standard', 'jumprelu', 'gated'],
  sparsityWarmup: ['standard', 'jumprelu', 'gated'],
  bandwidth: ['jumprelu'],
  firstThreshold: ['jumprelu'],
  targetL0: ['jumprelu'],
  penalty: ['jumprelu'],
  thresholdRate: ['batchtopk', 'matryoshka'],
}

function refuseUnused(options: SaeOptions, kind: TrainingKind): void {
  for (const [name, of] of Object.entries(only))
    if (options[name as keyof SaeOptions] !== undefined && !of.includes(kind))
      throw new UsageError(`'${name}' means nothing for a ${kind} autoencoder; it is for ${of.join(', ')}.`)
}

function check(r: SaeRecipe): void {
  const bad = (name: string, value: unknown, wanted: string) => new UsageError(`'${name}' must be ${wanted}, not ${String(value)}.`)
  if (!(Number.isInteger(r.width) && r.width > 0)) throw bad('width', r.width, 'a positive whole number')
  if (r.k !== undefined && !(r.k > 0 && r.k <= r.width)) throw bad('k', r.k, `above 0 and at most the width ${r.width}`)
  if (r.kind === 'topk' && !Number.isInteger(r.k)) throw bad('k', r.k, 'a whole number')
  if (r.groups?.some((g, i, all) => !Number.isInteger(g) || g <= (all[i - 1] ?? 0)) || (r.groups && r.groups.at(-1) !== r.width))
    throw bad('groups', r.groups?.join(', '), `rising whole numbers up to the width ${r.width}`)
  for (const name of ['sparsity', 'sparsityWarmup', 'warmup', 'aux', 'firstThreshold', 'thresholdRate'] as const)
    if (!(r[name] >= 0 && Number.isFinite(r[name]))) throw bad(name, r[name], 'zero or more')
  for (const name of ['rate', 'bandwidth', 'deadAfter', 'auxK', 'targetL0'] as const)
    if (r[name] !== undefined && !((r[name] as number) > 0 && Number.isFinite(r[name]))) throw bad(name, r[name], 'above zero')
  if (!(r.decay >= 0 && r.decay <= 1)) throw bad('decay', r.decay, 'a share from 0 to 1')
  if (r.auxK > r.width) throw bad('auxK', r.auxK, `at most the width ${r.width}`)
  if (r.resample && !(Number.isInteger(r.resample.every) && r.resample.every > 0))
    throw bad('resample.every', r.resample.every, 'a positive whole number')
}
