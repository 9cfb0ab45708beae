/** @file The bytes that a token stands for, whatever kind of tokenizer it belongs to. */
import { charOfByte, spellInBytes } from './bytes.ts'
import type { Tokenizer } from './tokenizer.ts'

/** A token in the byte-level spelling, a printable character for each byte; empty for special tokens and ids without a token. */
export function spellPiece(tokenizer: Tokenizer, id: number): string {
  if (id >= tokenizer.vocabSize || tokenizer.special.has(id) || tokenizer.eosIds.includes(id)) return ''
  const piece = tokenizer.piece(id)
  // Bytes that are no text alone are shown as <0xE2><0x80>.
  if (!/^(?:<0x[0-9A-F]{2}>)+$/.test(piece)) return piece === `<id ${id}>` ? '' : spellInBytes(piece)
  return [...piece.matchAll(/<0x([0-9A-F]{2})>/g)].map((m) => charOfByte[Number.parseInt(m[1] as string, 16)]).join('')
}
