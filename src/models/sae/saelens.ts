/** @file SAELens' folders: `cfg.json` and `sae_weights.safetensors`, of version 6 and before. The format that we write, too. */
import { join } from 'node:path'
import { FormatError, listed, UsageError } from '../../base/errors.ts'
import { makeFolder, readJson, writeFileWhole } from '../../base/files.ts'
import { openSafetensors, writeSafetensors } from '../formats/index.ts'
import { type Arrays, arraysOf, isRecord, type ReadSaeOptions, repeated, type SaeFolder, scalarOf, textOf } from './files.ts'
import { foldScale, type SaeKind, type SaeNormalize, type SaeWeights, saeWeights } from './weights.ts'

interface Architecture {
  readonly kind: SaeKind
  readonly transcoder?: boolean
  /** A checkpoint of training, whose one threshold stands beside the weights. */
  readonly trainingThreshold?: boolean
}

/** SAELens' architectures, by their name in `cfg.json`. */
const architectures: Readonly<Record<string, Architecture>> = {
  standard: { kind: 'standard' },
  topk: { kind: 'topk' },
  abstopk: { kind: 'abstopk' },
  jumprelu: { kind: 'jumprelu' },
  gated: { kind: 'gated' },
  transcoder: { kind: 'standard', transcoder: true },
  skip_transcoder: { kind: 'standard', transcoder: true },
  jumprelu_transcoder: { kind: 'jumprelu', transcoder: true },
  jumprelu_skip_transcoder: { kind: 'jumprelu', transcoder: true },
  batchtopk: { kind: 'jumprelu', trainingThreshold: true },
  matryoshka_batchtopk: { kind: 'jumprelu', trainingThreshold: true },
}

const normalizations: readonly SaeNormalize[] = [
  'none',
  'layer_norm',
  'constant_norm_rescale',
  'expected_average_only_in',
  'covariance_whitening',
]

/** Reads a folder of SAELens. */
export async function readSaelens(folder: SaeFolder, options: ReadSaeOptions = {}): Promise<SaeWeights> {
  const what = folder.name
  const value = await readJson(join(folder.path, 'cfg.json'))
  if (!isRecord(value)) throw new FormatError(`${join(folder.path, 'cfg.json')} must hold an object.`)
  const cfg = isRecord(value.metadata) ? value : beforeSix(value)
  const metadata = cfg.metadata as Record<string, unknown>
  const name = textOf(cfg.architecture) ?? 'standard'
  const architecture = Object.hasOwn(architectures, name) ? architectures[name] : undefined
  if (!architecture)
    throw new FormatError(
      `${what} is of the architecture '${name}', which cannot be read; those are ${Object.keys(architectures).join(', ')}.`,
    )
  const { kind, transcoder = false, trainingThreshold = false } = architecture
  const tensors = await arraysOf(await openSafetensors(join(folder.path, 'sae_weights.safetensors')))
  mend(tensors, { what, trainingThreshold })
  const sae = saeWeights(
    {
      kind,
      ...(kind === 'topk' || kind === 'abstopk' ? { k: Number(cfg.k) } : {}),
      subtractsBias: !transcoder && cfg.apply_b_dec_to_input !== false,
      normalize: normalizeOf(cfg.normalize_activations, what),
      rescales: cfg.rescale_acts_by_decoder_norm === true,
      transcoder,
      tensors,
      metadata,
      source: folder.name,
      format: 'saelens',
      ...named({ hook: metadata.hook_name, hookOut: metadata.hook_name_out, model: metadata.model_name }),
    },
    what,
  )
  for (const [key, size] of [
    ['d_in', sae.dIn],
    ['d_sae', sae.dSae],
    ['d_out', sae.dOut],
  ] as const)
    if (cfg[key] !== undefined && cfg[key] !== size)
      throw new FormatError(
        `cfg.json of ${what} says ${key} ${String(cfg[key])}, but its weights have ${size}; the files do not belong together.`,
      )
  return finished(sae, options)
}

/** Folds a known scale, or says that one is missing. */
function finished(sae: SaeWeights, { scale }: ReadSaeOptions): SaeWeights {
  const kwargs = sae.metadata.model_from_pretrained_kwargs
  const warnings = isRecord(kwargs) && kwargs.center_writing_weights === true ? [centred] : []
  const needsScale = sae.normalize === 'expected_average_only_in' || sae.normalize === 'covariance_whitening'
  if (sae.normalize === 'expected_average_only_in' && scale !== undefined) return { ...foldScale(sae, scale), warnings }
  if (scale !== undefined)
    throw new UsageError(`${sae.source} says normalize_activations '${sae.normalize}', so no scale can be folded into it; leave it out.`)
  return { ...sae, warnings: needsScale ? [...warnings, unscaled(sae.normalize)] : warnings }
}

const centred =
  'It was trained on a model with centred writing weights (TransformerLens): residual activations of the plain model differ from those by their mean over d_model.'
const unscaled = (how: string) =>
  `It was trained on scaled activations (${how}), and its files do not hold the scale; it is used as it is, as SAELens does. Give the scale to fold it in.`

function named(values: Readonly<Record<string, unknown>>): Record<string, string> {
  return Object.fromEntries(Object.entries(values).flatMap(([k, v]) => (textOf(v) === undefined ? [] : [[k, v as string]])))
}

function normalizeOf(value: unknown, what: string): SaeNormalize {
  if (value === undefined || value === null || value === false) return 'none'
  if (value === true) return 'expected_average_only_in'
  if (normalizations.includes(value as SaeNormalize)) return value as SaeNormalize
  throw new FormatError(`${what} says normalize_activations ${JSON.stringify(value)}; known are ${normalizations.join(', ')}.`)
}

/** Old names and leftovers of training among the tensors. */
function mend(tensors: Arrays, { what, trainingThreshold }: { what: string; trainingThreshold: boolean }): void {
  const { scaling_factor: factor, log_threshold: log, topk_threshold: single } = tensors
  if (factor) {
    if (factor.data.some((v) => v !== 1))
      throw new FormatError(`${what} holds a scaling_factor other than ones, which SAELens itself no longer applies; fold it in first.`)
    delete tensors.scaling_factor
  }
  if (log) {
    tensors.threshold = { ...log, data: log.data.map(Math.exp) }
    delete tensors.log_threshold
  }
  if (single || trainingThreshold) {
    tensors.threshold = repeated(scalarOf(tensors, 'topk_threshold', what), tensors.W_dec?.shape[0] ?? 0)
    delete tensors.topk_threshold
  }
}

/** A flat configuration of before 6.0 in the form of now. */
function beforeSix(old: Record<string, unknown>): Record<string, unknown> {
  const cfg: Record<string, unknown> = { ...old }
  const rename = (from: string, to: string) => {
    if (from in cfg && !(to in cfg)) cfg[to] = cfg[from]
    delete cfg[from]
  }
  rename('hook_point', 'hook_name')
  rename('hook_point_head_index', 'hook_head_index')
  rename('activation_fn_str', 'activation_fn')
  const kwargs = isRecord(cfg.activation_fn_kwargs) ? cfg.activation_fn_kwargs : {}
  if (cfg.activation_fn === 'topk') Object.assign(cfg, { architecture: 'topk', k: kwargs.k })
  const { architecture, d_in, d_sae, k, normalize_activations, apply_b_dec_to_input = true, ...metadata } = cfg
  return { architecture, d_in, d_sae, k, normalize_activations, apply_b_dec_to_input, metadata }
}

/** Names of SAELens for our kinds. */
function architectureOf(sae: SaeWeights): string {
  const skip = sae.tensors.W_skip ? 'skip_' : ''
  if (!sae.transcoder) return sae.kind
  return sae.kind === 'jumprelu' ? `jumprelu_${skip}transcoder` : `${skip}transcoder`
}

/**
 * Writes an autoencoder as SAELens reads it: `cfg.json` and `sae_weights.safetensors` in a folder, which is made.
 * @throws UsageError for kinds that SAELens has no name for.
 */
export async function writeSaelens(folder: string, sae: SaeWeights): Promise<void> {
  if (!Object.hasOwn(architectures, architectureOf(sae)) || (sae.transcoder && !['standard', 'jumprelu'].includes(sae.kind)))
    throw new UsageError(
      `SAELens has no architecture for a ${sae.kind} ${sae.transcoder ? 'transcoder' : 'autoencoder'}; those that can be written are ${listed(Object.keys(architectures), 20)}.`,
    )
  await makeFolder(folder)
  const heads = sae.hook?.includes('hook_z') || /^z\.\d+$/.test(sae.hook ?? '')
  const cfg = {
    d_in: sae.dIn,
    d_sae: sae.dSae,
    dtype: 'float32',
    device: 'cpu',
    apply_b_dec_to_input: sae.subtractsBias,
    normalize_activations: sae.normalize,
    reshape_activations: heads ? 'hook_z' : 'none',
    ...(sae.kind === 'topk' || sae.kind === 'abstopk' ? { k: sae.k, rescale_acts_by_decoder_norm: sae.rescales } : {}),
    ...(sae.transcoder ? { d_out: sae.dOut } : {}),
    metadata: {
      // Its readers take a configuration without a version of at least 6 for one of the old flat form.
      sae_lens_version: '6.0.0',
      ...sae.metadata,
      ...(sae.model === undefined ? {} : { model_name: sae.model }),
      ...(sae.hook === undefined ? {} : { hook_name: sae.hook }),
      ...(sae.hookOut === undefined ? {} : { hook_name_out: sae.hookOut }),
    },
    architecture: architectureOf(sae),
  }
  await writeSafetensors(join(folder, 'sae_weights.safetensors'), { ...sae.tensors })
  await writeFileWhole(join(folder, 'cfg.json'), `${JSON.stringify(cfg, undefined, 1)}\n`)
}
