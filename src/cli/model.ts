/** @file Loading the model of a command, with the options that every command has. */
import { FormatError, ModelError, UsageError } from '../base/errors.ts'
import { type ModelSource, parseModelSource } from '../models/hub/index.ts'
import { readEditsFile, withEditsFile } from '../run/edits-file.ts'
import { loadAny, type Model, OnnxModel } from '../run/index.ts'
import type { DataEdit } from '../sites/index.ts'
import type { CommandContext, CommonOptions } from './command.ts'
import { checkDevice } from './devices.ts'

/** Refuses what this machine cannot; before anything is fetched or read. */
export async function checkCommon(common: CommonOptions): Promise<void> {
  if (common.device !== undefined) await checkDevice(common.device)
}

/** What a user's MODEL means; a model that is not there is failed work, while a malformed name is wrong usage. */
export function modelSource(text: string): ModelSource {
  try {
    return parseModelSource(text)
  } catch (error) {
    if (error instanceof UsageError && text.trim() !== '' && !text.startsWith('npm:'))
      throw new FormatError(error.message, { cause: error })
    throw error
  }
}

/** Options of {@link withModel}. */
export interface ModelOptions {
  /** Path of an edits file. */
  readonly edits?: string
}

/** A loaded model, and the edits that were put on it. */
export interface EditedModel {
  readonly model: Model
  readonly edits: readonly DataEdit[]
}

/** An ONNX file, with the edits that were put on it. */
export interface EditedOnnx {
  readonly model: OnnxModel
  readonly edits: readonly DataEdit[]
}

/**
 * Loads a model and its edits, does the work, and frees what was compiled. An ONNX file goes to `onnx`; commands without it
 * refuse such files.
 */
export async function withModel<T>(
  context: CommandContext,
  name: string,
  options: ModelOptions,
  work: (loaded: EditedModel) => Promise<T>,
  onnx?: (loaded: EditedOnnx) => Promise<T>,
): Promise<T> {
  const { common, io, onProgress } = context
  modelSource(name)
  await checkCommon(common)
  // Small and often wrong: read before the model, which is neither.
  const edits = options.edits === undefined ? [] : await readEditsFile(options.edits)
  const loaded = await loadAny(name, {
    signal: io.signal,
    onProgress,
    ...(common.threads === undefined ? {} : { threads: common.threads }),
    ...(common.device === undefined ? {} : { device: common.device }),
    ...(common.precision === undefined ? {} : { precision: common.precision }),
    ...(common.family === undefined ? {} : { family: common.family }),
  })
  try {
    if (loaded instanceof OnnxModel) {
      if (!onnx)
        throw new ModelError(
          `${name} is an ONNX file, which this command does not take; sites, run, gradient, generate and export do. Give the checkpoint that it was exported from.`,
        )
      const model = options.edits === undefined ? loaded : withEditsFile(loaded, { path: options.edits, edits })
      return await onnx({ model, edits })
    }
    const model = options.edits === undefined ? loaded : withEditsFile(loaded, { path: options.edits, edits })
    return await work({ model, edits })
  } finally {
    await loaded.dispose()
  }
}
