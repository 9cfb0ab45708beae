/** @file EleutherAI's sparsify: `cfg.json` and `sae.safetensors`. */
import { join } from 'node:path'
import { FormatError } from '../../base/errors.ts'
import { readJson } from '../../base/files.ts'
import type { NDArray } from '../../base/types.ts'
import { openSafetensors } from '../formats/index.ts'
import { arraysOf, hookOf, isRecord, renamed, type SaeFolder, transposed } from './files.ts'
import { type SaeKind, type SaeWeights, saeWeights } from './weights.ts'

const activations: Readonly<Record<string, SaeKind>> = { topk: 'topk', groupmax: 'groupmax' }

/** Reads a folder of sparsify, as sparsify computes it (SAELens' reader of this format transposes W_dec and loses b_dec). */
export async function readSparsify(folder: SaeFolder): Promise<SaeWeights> {
  const what = folder.name
  const cfg = await readJson(join(folder.path, 'cfg.json'))
  if (!isRecord(cfg)) throw new FormatError(`${join(folder.path, 'cfg.json')} must hold an object.`)
  const name = cfg.activation ?? 'topk'
  const kind = activations[String(name)]
  if (!kind) throw new FormatError(`${what} has the activation '${String(name)}'; topk and groupmax are read.`)
  const arrays = await arraysOf(await openSafetensors(join(folder.path, 'sae.safetensors')))
  const names = { W_enc: 'encoder.weight', b_enc: 'encoder.bias', W_dec: 'W_dec', b_dec: 'b_dec' }
  const stored = renamed(arrays, arrays.W_skip ? { ...names, W_skip: 'W_skip' } : names, what)
  const transcoder = cfg.transcode === true
  const sae = saeWeights(
    {
      kind,
      k: Number(cfg.k),
      subtractsBias: !transcoder,
      transcoder: transcoder || arrays.W_skip !== undefined,
      tensors: { ...stored, W_enc: transposed(stored.W_enc as NDArray<Float32Array>, 'encoder.weight') },
      metadata: cfg,
      source: what,
      format: 'sparsify',
      ...placeOf(what, transcoder),
    },
    what,
  )
  if (cfg.d_in !== undefined && cfg.d_in !== sae.dIn)
    throw new FormatError(
      `cfg.json of ${what} says d_in ${String(cfg.d_in)}, but its weights have ${sae.dIn}; the files do not belong together.`,
    )
  return sae
}

/** The site: folders are called after modules, `layers.3` or `layers.3.mlp`. */
function placeOf(path: string, transcoder: boolean): { hook?: string; hookOut?: string } {
  const [, layer, mlp] = /(?:layers|h)\.(\d+)(\.mlp)?\/?$/.exec(path) ?? []
  if (layer === undefined) return {}
  const output = hookOf(mlp ? 'mlp_out' : 'resid_post', layer) as string
  if (!transcoder) return { hook: output }
  return { hook: hookOf(mlp ? 'mlp_in' : 'resid_pre', layer) as string, hookOut: output }
}
