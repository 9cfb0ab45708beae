/** @file Running the command line in a test: in the process, with streams that are kept. */
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { PassThrough, Readable, Writable } from 'node:stream'
import type { NDArray } from '../base/types.ts'
import type { Config } from '../models/config.ts'
import { writeSafetensors } from '../models/formats/index.ts'
import { tinyLlama, tinyTensors } from '../run/testing.ts'
import { main } from './cli.ts'

/** What a run of the command line did. */
export interface Ran {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/** Options of {@link cli}. */
export interface CliOptions {
  readonly stdin?: string
  readonly signal?: AbortSignal
  /** Called with all of stdout whenever something was written to it. */
  readonly onStdout?: (all: string) => void
}

/** Runs the command line in this process. */
export async function cli(argv: readonly string[], options: CliOptions = {}): Promise<Ran> {
  const [out, err] = [collector(options.onStdout), collector()]
  const code = await main(argv, {
    stdin: options.stdin === undefined ? new PassThrough().end() : Readable.from([Buffer.from(options.stdin)]),
    stdout: out.stream,
    stderr: err.stream,
    signal: options.signal ?? new AbortController().signal,
  })
  return { code, stdout: out.text(), stderr: err.text() }
}

function collector(onWrite: (all: string) => void = () => {}): { stream: Writable; text: () => string } {
  let all = ''
  const stream = new Writable({
    write(piece: Buffer, _, done) {
      all += piece.toString()
      onWrite(all)
      done()
    },
  })
  return { stream, text: () => all }
}

/** The config of a two-layer Llama. */
export const smallLlama: Config = { ...tinyLlama, num_hidden_layers: 2 }

/** Writes a checkpoint folder with random weights; tensors may be replaced. */
export async function writeModel(folder: string, config: Config = smallLlama, replaced: Record<string, NDArray> = {}): Promise<string> {
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, 'config.json'), JSON.stringify(config))
  await writeSafetensors(join(folder, 'model.safetensors'), { ...tinyTensors(config), ...replaced })
  return folder
}

/** Writes a tokenizer of words `w0` … and a chat template into a checkpoint folder. */
export async function writeTokenizer(folder: string, words = 61): Promise<void> {
  const vocab = Object.fromEntries(Array.from({ length: words }, (_, i) => [`w${i}`, i]))
  const model = { type: 'WordLevel', vocab, unk_token: 'w0' }
  const tokenizer = {
    version: '1.0',
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: { type: 'Whitespace' },
    post_processor: null,
    decoder: null,
    model,
  }
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer))
  const chat_template = '{% for m in messages %}w1 {{ m.content }} w2 {% endfor %}{% if add_generation_prompt %}w3{% endif %}'
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify({ chat_template }))
}

/** A float32 vector as an array for a file. */
export function float32(values: readonly number[], shape: readonly number[] = [values.length]): NDArray {
  return { dtype: 'float32', shape, data: Float32Array.from(values) }
}

/** Token ids as an array for a file. */
export function int64(values: readonly number[], shape: readonly number[]): NDArray {
  return { dtype: 'int64', shape, data: BigInt64Array.from(values, BigInt) }
}
