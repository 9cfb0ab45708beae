/** @file From an ONNX file to a model value. For Node only. */
import { existsSync } from 'node:fs'
import { freemem } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { ModelError } from '../../base/errors.ts'
import { loadHfTokenizer } from '../../models/text/index.ts'
import type { LoadOptions } from '../load.ts'
import { OnnxCore } from './core.ts'
import { OnnxModel } from './model.ts'
import { openOnnx } from './open.ts'
import { recognise } from './recognise.ts'
import { OnnxSites } from './sites.ts'

/**
 * Loads an ONNX file.
 * @throws FormatError for files that are damaged, that name files outside their folder, or that the runtime refuses.
 */
export async function loadOnnx(
  path: string,
  origin: { id: string; hash: () => Promise<string> },
  options: LoadOptions = {},
): Promise<OnnxModel> {
  if (options.precision !== undefined && options.precision !== 'f32')
    throw new ModelError(`${path} runs in the precision in which it was exported; leave the precision out.`)
  const { file, external } = await openOnnx(path)
  const core = await OnnxCore.of(file, {
    device: options.device ?? 'cpu',
    ...(options.threads ? { threads: options.threads } : {}),
    memory: options.memory ?? Math.max(freemem() / 4, 256e6),
    filesUsed: external.length > 0,
  })
  const folder = surroundings(path)
  const tokenizer = existsSync(join(folder, 'tokenizer.json')) ? await loadHfTokenizer(folder) : undefined
  const checks = [
    'every name that the graph reads is defined once, and no node waits for itself',
    `ONNX Runtime accepts the graph and types its ${core.tensors.size} tensors`,
    ...(external.length > 0 ? [`the ${external.length} files that hold weights lie in its folder`] : []),
  ]
  const recognised = recognise(file, core.tensors)
  if (recognised.family) checks.push(`the names in the file are those of ${recognised.layers} blocks of '${recognised.family}'`)
  return new OnnxModel({
    core,
    sites: new OnnxSites(core.tensors, recognised.sites, recognised.missing),
    ...(tokenizer ? { tokenizer } : {}),
    ...(recognised.family ? { family: recognised.family } : {}),
    layers: recognised.layers,
    origin: { ...origin, checks, transforms: [] },
  })
}

/** The folder with what belongs to a file: exports keep the graph in a folder `onnx` beside their config and tokenizer. */
export function surroundings(path: string): string {
  const folder = dirname(path)
  const above = dirname(folder)
  const complete = (f: string) => existsSync(join(f, 'config.json')) || existsSync(join(f, 'tokenizer.json'))
  return basename(folder) === 'onnx' && !complete(folder) && complete(above) ? above : folder
}
