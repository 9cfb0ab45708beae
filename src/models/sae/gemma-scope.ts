/** @file Gemma Scope 1 (`params.npz`) and 2 (`params.safetensors`): JumpReLU autoencoders and transcoders of Gemma models. */
import { join } from 'node:path'
import { FormatError } from '../../base/errors.ts'
import { readJson } from '../../base/files.ts'
import type { NDArray } from '../../base/types.ts'
import { openNpz, openSafetensors } from '../formats/index.ts'
import { type Arrays, arraysOf, hookOf, isRecord, renamed, type SaeFolder, textOf, transposed } from './files.ts'
import { type SaeWeights, saeWeights } from './weights.ts'

/** Names as they are stored, in lower or upper case, to ours. */
function ours(arrays: Arrays, what: string): Arrays {
  const lower = Object.fromEntries(Object.entries(arrays).map(([name, array]) => [name.toLowerCase(), array]))
  const names = { W_enc: 'w_enc', b_enc: 'b_enc', W_dec: 'w_dec', b_dec: 'b_dec', threshold: 'threshold' }
  const { affine_skip_connection: skip, ...rest } = lower
  const tensors = renamed(rest, names, what)
  if ((tensors.W_dec as NDArray).shape.length === 3)
    throw new FormatError(`${what} is a cross-layer transcoder, which writes to several layers; only those of one layer are read.`)
  return skip ? { ...tensors, W_skip: transposed(skip, 'affine_skip_connection') } : tensors
}

/** What the path of a release says: `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`. */
function placesOfPath(name: string): { hook?: string | undefined; hookOut?: string | undefined } {
  const layer = /layer_(\d+)/.exec(name)?.[1]
  if (/(^|\/)embedding(\/|$)/.test(name)) return { hook: 'hook_embed' }
  if (layer === undefined) return {}
  if (/transcoder/.test(name)) return { hook: `blocks.${layer}.ln2.hook_normalized`, hookOut: hookOf('mlp_out', layer) }
  if (/-att(n)?(\/|$)|attn_out/.test(name)) return { hook: /attn_out/.test(name) ? hookOf('attn_out', layer) : hookOf('z', layer) }
  if (/-mlp(\/|$)|mlp_out/.test(name)) return { hook: hookOf('mlp_out', layer) }
  return /-res(\/|$)|resid_post/.test(name) ? { hook: hookOf('resid_post', layer) } : {}
}

const modelOfPath = (name: string) => /gemma-scope-(\w+)-(pt|it)/.exec(name)

const given = (values: Readonly<Record<string, string | undefined>>) =>
  Object.fromEntries(Object.entries(values).filter((e): e is [string, string] => e[1] !== undefined))

/** Reads `params.npz` of Gemma Scope 1. */
export async function readGemmaScope(folder: SaeFolder): Promise<SaeWeights> {
  const tensors = ours(await arraysOf(await openNpz(join(folder.path, 'params.npz'))), folder.name)
  const places = placesOfPath(folder.name)
  // Embeddings are scaled by √d in the model, and these autoencoders were trained on the scaled ones.
  if (places.hook === 'hook_embed') {
    const root = Math.sqrt((tensors.b_dec as NDArray).shape[0] as number)
    const scaled = (name: string, by: number) => {
      const array = tensors[name] as NDArray<Float32Array>
      tensors[name] = { ...array, data: array.data.map((v) => v * by) }
    }
    scaled('W_enc', 1 / root)
    scaled('W_dec', root)
  }
  const [, size, tuned] = modelOfPath(folder.name) ?? []
  return saeWeights(
    {
      kind: 'jumprelu',
      subtractsBias: false,
      transcoder: places.hookOut !== undefined,
      tensors,
      source: folder.name,
      format: 'gemma_scope',
      ...given({ ...places, model: size && `google/gemma-2-${size}${tuned === 'it' ? '-it' : ''}` }),
    },
    folder.name,
  )
}

/** Reads `params.safetensors` of Gemma Scope 2; `config.json` may be absent. */
export async function readGemmaScope2(folder: SaeFolder): Promise<SaeWeights> {
  const config = folder.files.includes('config.json') ? await readJson(join(folder.path, 'config.json')) : {}
  if (!isRecord(config)) throw new FormatError(`${join(folder.path, 'config.json')} must hold an object.`)
  const kind = textOf(config.architecture) ?? 'jump_relu'
  if (kind !== 'jump_relu') throw new FormatError(`${folder.name} is of the architecture '${kind}'; only jump_relu is read.`)
  const tensors = ours(await arraysOf(await openSafetensors(join(folder.path, 'params.safetensors'))), folder.name)
  const path = placesOfPath(folder.name)
  const [input, output] = [textOf(config.hf_hook_point_in), textOf(config.hf_hook_point_out)]
  const hookOut = output !== undefined && output !== input ? output : path.hookOut
  return saeWeights(
    {
      kind: 'jumprelu',
      subtractsBias: false,
      transcoder: hookOut !== undefined || tensors.W_skip !== undefined,
      tensors,
      source: folder.name,
      format: 'gemma_scope_2',
      metadata: config,
      ...given({ hook: input ?? path.hook, hookOut, model: textOf(config.model_name) }),
    },
    folder.name,
  )
}
