/** @file dictionary_learning: `config.json` and `ae.pt`, of which nothing is executed. */
import { join } from 'node:path'
import { FormatError, listed } from '../../base/errors.ts'
import { readJson } from '../../base/files.ts'
import type { NDArray } from '../../base/types.ts'
import { openPickle } from '../formats/index.ts'
import { type Arrays, arraysOf, hookOf, isRecord, renamed, repeated, type SaeFolder, scalarOf, textOf, transposed } from './files.ts'
import { type SaeKind, type SaeWeights, saeWeights } from './weights.ts'

interface DictRow {
  readonly kind: SaeKind
  /** Our names to those of the state dict; `.weight` matrices are transposed. */
  readonly names: Readonly<Record<string, string>>
  readonly subtractsBias: boolean
  /** Stored scalars that are not weights. */
  readonly extra?: readonly string[]
  /** One threshold stands for all latents. */
  readonly oneThreshold?: boolean
}

const linear = (bias: string) => ({ W_enc: 'encoder.weight', b_enc: 'encoder.bias', W_dec: 'decoder.weight', b_dec: bias })
const plain = { W_enc: 'W_enc', b_enc: 'b_enc', W_dec: 'W_dec', b_dec: 'b_dec' }

/** The library's classes. BatchTopK and Matryoshka use their threshold once trained, TopK keeps the k largest. */
const classes: Readonly<Record<string, DictRow>> = {
  AutoEncoder: { kind: 'standard', names: linear('bias'), subtractsBias: true },
  AutoEncoderNew: { kind: 'standard', names: linear('decoder.bias'), subtractsBias: false },
  AutoEncoderTopK: { kind: 'topk', names: linear('b_dec'), subtractsBias: true, extra: ['k', 'threshold'] },
  BatchTopKSAE: { kind: 'jumprelu', names: linear('b_dec'), subtractsBias: true, extra: ['k'], oneThreshold: true },
  MatryoshkaBatchTopKSAE: { kind: 'jumprelu', names: plain, subtractsBias: true, extra: ['k', 'group_sizes'], oneThreshold: true },
  JumpReluAutoEncoder: { kind: 'jumprelu', names: { ...plain, threshold: 'threshold' }, subtractsBias: false },
  GatedAutoEncoder: {
    kind: 'gated',
    names: {
      W_enc: 'encoder.weight',
      W_dec: 'decoder.weight',
      b_dec: 'decoder_bias',
      b_gate: 'gate_bias',
      b_mag: 'mag_bias',
      r_mag: 'r_mag',
    },
    subtractsBias: true,
  },
}

/** Reads a folder of the library, as its `encode` and `decode` use the stored weights. */
export async function readDictionaryLearning(folder: SaeFolder): Promise<SaeWeights> {
  const what = folder.name
  const config = await readJson(join(folder.path, 'config.json'))
  const trainer = isRecord(config) && isRecord(config.trainer) ? config.trainer : undefined
  const name = textOf(trainer?.dict_class)
  const row = name !== undefined && Object.hasOwn(classes, name) ? classes[name] : undefined
  if (!trainer || !row)
    throw new FormatError(
      `config.json of ${what} names ${name === undefined ? 'no dict_class' : `the class ${name}`}; those that are read are ${listed(Object.keys(classes), 20)}.`,
    )
  const arrays = await arraysOf(await openPickle(join(folder.path, 'ae.pt')))
  const { extra = [], oneThreshold } = row
  const k = row.kind === 'topk' ? scalarOf(arrays, 'k', what) : undefined
  const threshold = oneThreshold ? scalarOf(arrays, 'threshold', what) : undefined
  const dropped = [...extra, ...(oneThreshold ? ['threshold'] : [])]
  const stored = Object.fromEntries(Object.entries(arrays).filter(([n]) => !dropped.includes(n)))
  const tensors: Arrays = renamed(stored, row.names, what)
  for (const [to, from] of Object.entries(row.names))
    if (from.endsWith('.weight')) tensors[to] = transposed(tensors[to] as NDArray<Float32Array>, from)
  if (threshold !== undefined) tensors.threshold = repeated(threshold, (tensors.b_enc as NDArray).data.length)
  const sae = saeWeights(
    {
      kind: row.kind,
      ...(k === undefined ? {} : { k }),
      subtractsBias: row.subtractsBias,
      tensors,
      metadata: config as Record<string, unknown>,
      source: what,
      format: 'dictionary_learning',
      ...placeOf(what, trainer),
      ...(textOf(trainer.lm_name) === undefined ? {} : { model: trainer.lm_name as string }),
    },
    what,
  )
  for (const [key, size] of [
    ['activation_dim', sae.dIn],
    ['dict_size', sae.dSae],
  ] as const)
    if (trainer[key] !== undefined && trainer[key] !== size)
      throw new FormatError(
        `config.json of ${what} says ${key} ${String(trainer[key])}, but ae.pt has ${size}; the files do not belong together.`,
      )
  return sae
}

/** The site: from the submodule's name or the folder's, `resid_post_layer_3`. */
function placeOf(path: string, trainer: Record<string, unknown>): { hook?: string } {
  for (const text of [textOf(trainer.submodule_name), path]) {
    const [, place, layer] = /(resid_pre|resid_mid|resid_post|mlp_out|attn_out)_layer_?(\d+)/.exec(text ?? '') ?? []
    const hook = place && layer && hookOf(place, layer)
    if (hook) return { hook }
  }
  return {}
}
