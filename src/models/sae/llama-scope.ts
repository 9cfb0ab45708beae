/** @file Llama Scope: `hyperparams.json` with `checkpoints/final.safetensors`, and the R1-Distill release's `config.json` with `sae_weights.safetensors`. */
import { join } from 'node:path'
import { FormatError } from '../../base/errors.ts'
import { readJson } from '../../base/files.ts'
import type { NDArray } from '../../base/types.ts'
import { openSafetensors } from '../formats/index.ts'
import { type Arrays, arraysOf, isRecord, type ReadSaeOptions, renamed, repeated, type SaeFolder, textOf, transposed } from './files.ts'
import { foldScale, type SaeWeights, saeWeights } from './weights.ts'

interface Raw {
  readonly config: Record<string, unknown>
  readonly arrays: Arrays
}

async function rawOf(folder: SaeFolder, config: string, weights: string): Promise<Raw> {
  const value = await readJson(join(folder.path, config))
  if (!isRecord(value)) throw new FormatError(`${join(folder.path, config)} must hold an object.`)
  if (value.act_fn !== undefined && value.act_fn !== 'jumprelu')
    throw new FormatError(`${folder.name} has the activation '${String(value.act_fn)}'; of Llama Scope only jumprelu is read.`)
  return { config: value, arrays: await arraysOf(await openSafetensors(join(folder.path, weights))) }
}

const layout = { W_enc: 'encoder.weight', b_enc: 'encoder.bias', W_dec: 'decoder.weight', b_dec: 'decoder.bias' }

function build(folder: SaeFolder, { config }: Raw, arrays: Arrays, threshold: NDArray<Float32Array>, warnings: string[]): SaeWeights {
  const stored = renamed(arrays, layout, folder.name)
  const tensors = {
    ...stored,
    W_enc: transposed(stored.W_enc as NDArray<Float32Array>, 'encoder.weight'),
    W_dec: transposed(stored.W_dec as NDArray<Float32Array>, 'decoder.weight'),
    threshold,
  }
  const [hook, hookOut] = [textOf(config.hook_point_in), textOf(config.hook_point_out)]
  return saeWeights(
    {
      kind: 'jumprelu',
      subtractsBias: config.apply_decoder_bias_to_pre_encoder === true,
      transcoder: hookOut !== undefined && hookOut !== hook,
      tensors,
      metadata: config,
      source: folder.name,
      format: 'llama_scope',
      warnings,
      ...(hook === undefined ? {} : { hook }),
      ...(hookOut === undefined || hookOut === hook ? {} : { hookOut }),
    },
    folder.name,
  )
}

/** Reads a release of Llama Scope: it was trained on activations of mean length √d, which is folded in. */
export async function readLlamaScope(folder: SaeFolder): Promise<SaeWeights> {
  const raw = await rawOf(folder, 'hyperparams.json', 'checkpoints/final.safetensors')
  const { jump_relu_threshold: jump, dataset_average_activation_norm: norms } = raw.config
  const norm = isRecord(norms) ? norms.in : undefined
  if (typeof jump !== 'number' || typeof norm !== 'number' || !(norm > 0))
    throw new FormatError(`hyperparams.json of ${folder.name} lacks jump_relu_threshold or dataset_average_activation_norm.in.`)
  const [dSae, dIn] = (raw.arrays['encoder.weight']?.shape ?? [0, 0]) as [number, number]
  const scale = Math.sqrt(dIn) / norm
  const sae = build(folder, raw, raw.arrays, repeated(jump * scale, dSae), [])
  return foldScale(sae, scale)
}

/** Reads a release of Llama Scope R1-Distill, whose scale is not in its files. */
export async function readLlamaScopeR1(folder: SaeFolder, { scale }: ReadSaeOptions = {}): Promise<SaeWeights> {
  const raw = await rawOf(folder, 'config.json', 'sae_weights.safetensors')
  const { log_jumprelu_threshold: log, ...arrays } = raw.arrays
  if (!log) throw new FormatError(`${folder.name} lacks log_jumprelu_threshold.`)
  const missing =
    'It was trained on scaled activations, and its files do not hold the scale; it is used as it is. Give the scale to fold it in.'
  const sae = build(folder, raw, arrays, { ...log, data: log.data.map(Math.exp) }, scale === undefined ? [missing] : [])
  return scale === undefined ? sae : foldScale(sae, scale)
}
