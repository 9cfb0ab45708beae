/** @file Low-rank adapters in the format of PEFT: `adapter_config.json` beside `adapter_model.safetensors` (Node). */
import { FormatError, listed, ModelError } from '../base/errors.ts'
import { readJson, writeFileWhole } from '../base/files.ts'
import type { NDArray } from '../base/types.ts'
import type { Config } from './config.ts'
import { openSafetensors } from './formats/index.ts'
import { writeSafetensors } from './formats/safetensors-write.ts'

/** The adapter of one linear layer: scale · x·Aᵀ·Bᵀ is added to its output. */
export interface AdapterLayer {
  readonly rank: number
  /** lora_alpha / rank, or lora_alpha / √rank where the config says rslora. */
  readonly scale: number
  /** A, [rank, in]. */
  readonly a: Float32Array
  /** B, [out, rank]. */
  readonly b: Float32Array
}

/** A low-rank adapter. */
export interface PeftAdapter {
  /** By module path, as the checkpoint names its weight: `model.layers.0.self_attn.q_proj`. */
  readonly modules: ReadonlyMap<string, AdapterLayer>
  /** `adapter_config.json`. */
  readonly config: Config
}

const files = { config: 'adapter_config.json', weights: 'adapter_model.safetensors' } as const
const prefix = 'base_model.model.'

/** Settings that change what an adapter computes, with the values under which it is what we compute. */
const refusals: Readonly<Record<string, readonly unknown[]>> = {
  use_dora: [false],
  bias: ['none'],
  modules_to_save: [[]],
  layer_replication: [],
  megatron_config: [],
  trainable_token_indices: [[]],
  lora_bias: [false],
  use_qalora: [false],
  alora_invocation_tokens: [],
  arrow_config: [],
  target_parameters: [[]],
  use_bdlora: [false],
  kasa_config: [],
  monteclora_config: [],
  velora_config: [],
}

function refuseOthers(config: Config, where: string): void {
  if (config.peft_type !== 'LORA')
    throw new ModelError(`${where} holds an adapter of the kind ${JSON.stringify(config.peft_type)}; only LORA is read.`)
  for (const [key, allowed] of Object.entries(refusals)) {
    const value = config[key]
    if (value === undefined || value === null || allowed.some((a) => JSON.stringify(a) === JSON.stringify(value))) continue
    throw new ModelError(
      `'${key}' in ${where} is ${JSON.stringify(value)}, which changes what the adapter computes and is not supported; merge it with PEFT first (merge_and_unload).`,
    )
  }
}

/** The value of a module in `rank_pattern` or `alpha_pattern`: keys are regular expressions for the end of its path, as in PEFT. */
function patterned(patterns: unknown, module: string, otherwise: unknown): number {
  const rows = typeof patterns === 'object' && patterns !== null ? Object.entries(patterns) : []
  const found = rows.find(([key]) => {
    // Paths with layer numbers and alternatives, as PEFT writes them; anything with more power is not run.
    // Repeated groups could take for ever.
    if (!/^[\w.|()^$\\*+?[\]-]*$/.test(key) || /[)\]][*+]/.test(key) || key.length > 500)
      throw new FormatError(`The pattern ${JSON.stringify(key)} of an adapter is not read.`)
    try {
      return new RegExp(key.startsWith('^') ? key : `^(?:.*\\.)?(?:${key})$`).test(module)
    } catch (error) {
      throw new FormatError(`The pattern ${JSON.stringify(key)} of an adapter is no regular expression.`, { cause: error })
    }
  })
  const value = found ? found[1] : otherwise
  if (typeof value !== 'number' || !(value > 0))
    throw new FormatError(`The adapter says no rank or alpha for '${module}'; adapter_config.json is damaged.`)
  return value
}

/**
 * Reads a PEFT adapter from its folder.
 * @throws FormatError, ModelError for what is damaged, or computes something other than LoRA (DoRA, trained biases, saved modules).
 */
export async function readPeftAdapter(folder: string): Promise<PeftAdapter> {
  const { join } = await import('node:path')
  const where = join(folder, files.config)
  const config = (await readJson(where)) as Config
  if (typeof config !== 'object' || config === null || Array.isArray(config))
    throw new FormatError(`${where} is not an object; fetch it again.`)
  refuseOthers(config, where)
  const store = await openSafetensors(join(folder, files.weights))
  try {
    const modules = new Map<string, AdapterLayer>()
    const rest = new Set(store.tensors.keys())
    for (const name of store.tensors.keys()) {
      const match = /^(.*)\.lora_A\.weight$/.exec(name)
      if (!match) continue
      const path = match[1] as string
      const module = path.startsWith(prefix) ? path.slice(prefix.length) : path
      const second = `${path}.lora_B.weight`
      const [sa, sb] = [store.get(name).shape, store.get(second).shape]
      const rank = patterned(config.rank_pattern, module, config.r)
      if (sa.length !== 2 || sb.length !== 2 || sa[0] !== rank || sb[1] !== rank)
        throw new FormatError(
          `The adapter of '${module}' has matrices [${sa.join(', ')}] and [${sb.join(', ')}], which are not those of rank ${rank}; fetch it again.`,
        )
      const alpha = patterned(config.alpha_pattern, module, config.lora_alpha)
      const scale = alpha / (config.use_rslora === true ? Math.sqrt(rank) : rank)
      modules.set(module, { rank, scale, a: await store.readFloat32(name), b: await store.readFloat32(second) })
      rest.delete(name)
      rest.delete(second)
    }
    if (rest.size > 0)
      throw new ModelError(
        `${join(folder, files.weights)} holds tensors that are no plain low-rank adapter (${listed(rest, 4)}); merge it with PEFT first.`,
      )
    if (modules.size === 0) throw new FormatError(`${join(folder, files.weights)} holds no adapter.`)
    return { modules, config }
  } finally {
    await store.close()
  }
}

/** An adapter of these layers, with the config that PEFT expects; all layers need one rank and one scale, or patterns say which. */
export function peftAdapter(
  layers: ReadonlyMap<string, AdapterLayer>,
  options: { readonly baseModel?: string; readonly fanInFanOut?: boolean } = {},
): PeftAdapter {
  const first = [...layers.values()][0]
  if (!first) throw new ModelError('There is no adapter to keep: no layer is changed.')
  const alphaOf = ({ rank, scale }: AdapterLayer) => rank * scale
  const differing = (of: (l: AdapterLayer) => number) =>
    Object.fromEntries([...layers].filter(([, l]) => of(l) !== of(first)).map(([m, l]) => [m, of(l)]))
  const config = {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    base_model_name_or_path: options.baseModel ?? null,
    r: first.rank,
    lora_alpha: alphaOf(first),
    rank_pattern: differing((l) => l.rank),
    alpha_pattern: differing(alphaOf),
    lora_dropout: 0,
    bias: 'none',
    fan_in_fan_out: options.fanInFanOut ?? false,
    use_rslora: false,
    use_dora: false,
    target_modules: [...layers.keys()],
    inference_mode: true,
  }
  return { modules: layers, config }
}

/** Writes an adapter as PEFT reads it, into a folder. */
export async function writePeftAdapter(folder: string, { modules, config }: PeftAdapter): Promise<void> {
  const [{ mkdir }, { join }] = await Promise.all([import('node:fs/promises'), import('node:path')])
  await mkdir(folder, { recursive: true })
  const tensors: Record<string, NDArray> = {}
  for (const [module, { a, b, rank }] of modules) {
    tensors[`${prefix}${module}.lora_A.weight`] = { dtype: 'float32', shape: [rank, a.length / rank], data: a }
    tensors[`${prefix}${module}.lora_B.weight`] = { dtype: 'float32', shape: [b.length / rank, rank], data: b }
  }
  await writeSafetensors(join(folder, files.weights), tensors, { format: 'pt' })
  await writeFileWhole(join(folder, files.config), `${JSON.stringify(config, null, 2)}\n`)
}
