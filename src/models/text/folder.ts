/** @file Reads the tokenizer files of a Hugging Face folder, from the disk or from wherever a browser has them. */

import { FormatError, messageOf } from '../../base/errors.ts'
import { createHfTokenizer } from './hf-tokenizer.ts'
import type { Tokenizer } from './tokenizer.ts'

/** Gives the text of a file by its name, or undefined where there is none. */
export type ReadText = (name: string) => Promise<string | undefined>

/** The tokenizer of a Hugging Face model whose files `read` gives; `where` names the folder in errors. */
export async function readHfTokenizer(read: ReadText, where: string): Promise<Tokenizer> {
  const names = ['tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'generation_config.json', 'config.json'] as const
  const [tokenizer, config, specialTokensMap, generationConfig, modelConfig] = await Promise.all(
    names.map((name) => readJsonText(read, name, where)),
  )
  if (tokenizer === undefined) {
    throw new FormatError(
      `${where} has no tokenizer.json. Write one with Python: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER), or give token ids.`,
    )
  }
  const jinja = await read('chat_template.jinja')
  const json = jinja === undefined ? await readJsonText(read, 'chat_template.json', where) : undefined
  const chatTemplate = jinja ?? (json as { chat_template?: unknown } | undefined)?.chat_template
  try {
    return createHfTokenizer({
      tokenizer,
      config,
      specialTokensMap,
      generationConfig,
      modelConfig,
      chatTemplate: typeof chatTemplate === 'string' ? chatTemplate : undefined,
    })
  } catch (error) {
    if (error instanceof FormatError) throw new FormatError(`${where}: ${error.message}`, { cause: error })
    throw error
  }
}

async function readJsonText(read: ReadText, name: string, where: string): Promise<unknown> {
  const text = await read(name)
  if (text === undefined) return undefined
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new FormatError(`${name} of ${where} is not valid JSON (${messageOf(error)}): it may be truncated, so fetch it again.`, {
      cause: error,
    })
  }
}

/** The tokenizer of a Hugging Face folder on the disk (Node). */
export async function loadHfTokenizer(folder: string): Promise<Tokenizer> {
  const { files, fsPromises, path } = await import('../../base/node.ts')
  const { readFailure, systemCode } = files
  const read: ReadText = async (name) => {
    try {
      return await fsPromises.readFile(path.join(folder, name), 'utf8')
    } catch (error) {
      if (systemCode(error) === 'ENOENT') return undefined
      throw readFailure(error, path.join(folder, name))
    }
  }
  return readHfTokenizer(read, folder)
}
