/** @file llama2.c's tokenizer file: a maximal piece length, then for each piece its score, its length and its bytes. */

import { FormatError } from '../../base/errors.ts'
import { byteOfPiece, textOfBytes } from './bytes.ts'
import { ScoreTokenizer } from './score-tokenizer.ts'
import type { Tokenizer } from './tokenizer.ts'

/** Ids that llama2.c fixes: its vocabularies come from SentencePiece with its defaults. */
const unknownId = 0
const bosId = 1
const eosId = 2

/** The first of the 256 tokens that stand for bytes. */
const firstByteId = 3

/** Longest piece that a file may claim; real ones have some dozens of bytes. */
const longestPiece = 4096

/**
 * The tokenizer in the bytes of a llama2.c `tokenizer.bin`. The file does not say how many pieces it has: `vocabSize` is the model's,
 * and without it all bytes are read. `name` is what errors call the file.
 */
export function parseLlama2cTokenizer(bytes: Uint8Array, vocabSize?: number, name = 'The llama2.c tokenizer file'): Tokenizer {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const truncated = (count: number): FormatError =>
    new FormatError(
      `${name} ends after ${count}${vocabSize === undefined ? '' : ` of ${vocabSize}`} pieces: it is truncated, or of another model. Fetch it again.`,
    )
  if (bytes.length < 4) throw truncated(0)
  const longest = view.getInt32(0, true)
  if (longest < 1 || longest > longestPiece) {
    throw new FormatError(`${name} is not a llama2.c tokenizer: it begins with a piece length of ${longest}.`)
  }
  const pieces: Uint8Array[] = []
  const scores: number[] = []
  let at = 4
  while (vocabSize === undefined ? at < bytes.length : pieces.length < vocabSize) {
    if (at + 8 > bytes.length) throw truncated(pieces.length)
    const score = view.getFloat32(at, true)
    const length = view.getInt32(at + 4, true)
    if (length < 0 || length > longest || !Number.isFinite(score)) {
      throw new FormatError(
        `${name} is damaged at piece ${pieces.length}: it has length ${length} (at most ${longest}) and score ${score}.`,
      )
    }
    if (at + 8 + length > bytes.length) throw truncated(pieces.length)
    pieces.push(bytes.slice(at + 8, at + 8 + length))
    scores.push(score)
    at += 8 + length
  }
  if (at < bytes.length) {
    throw new FormatError(
      `${name} has ${bytes.length - at} bytes behind its ${vocabSize} pieces: it belongs to a model with a larger vocabulary.`,
    )
  }
  if (pieces.length <= eosId) throw new FormatError(`${name} has only ${pieces.length} pieces: it is damaged, or not a tokenizer.`)
  return new ScoreTokenizer({
    pieces,
    scores,
    byteOf: byteTokens(pieces),
    special: new Map([
      [unknownId, '<unk>'],
      [bosId, '<s>'],
      [eosId, '</s>'],
    ]),
    bos: bosId,
    eos: eosId,
    // The story models were trained with BOS between texts, so that it is also what ends one.
    eosIds: [eosId, bosId],
    addBos: true,
    addEos: false,
    addSpace: true,
    stripSpace: 'after-bos',
  })
}

/**
 * Byte tokens are `<0xNN>` in newer files and the character of that number in older ones (stories15M's). In both they mean the byte,
 * and as in SentencePiece no text is merged into them, where llama2.c merges the letter â of the byte E2 with the space before it.
 */
function byteTokens(pieces: readonly Uint8Array[]): Map<number, number> {
  const isByte = (piece: string, byte: number): boolean => byteOfPiece(piece) === byte || piece === String.fromCharCode(byte)
  const all = Array.from({ length: 256 }, (_, byte): [number, number] => [firstByteId + byte, byte])
  return new Map(all.filter(([id, byte]) => isByte(textOfBytes(pieces[id] ?? new Uint8Array(0)), byte)))
}
