/** @file Beginnings of prompts that were read before, kept within a limit of bytes and found again by tokens and edits. */
import { UsageError } from '../base/errors.ts'
import { type CachedRow, type CacheOwner, editsKey, KeyValueCache } from './key-value-cache.ts'

interface Entry {
  readonly core: CacheOwner['core']
  readonly edits: string
  readonly cache: KeyValueCache
}

/** A beginning that was found. */
export interface FoundPrefix {
  readonly row: CachedRow
  /** Positions that can be taken over. */
  readonly length: number
  readonly total: number
}

/** Keys and values of earlier generations. Give one to several calls of `generate`; it may serve several models and lists of edits, which it keeps apart. */
export class PrefixCache {
  /** Most bytes of keys and values that it holds; the ones used longest ago go first. */
  readonly limit: number
  private entries: Entry[] = []

  constructor({ bytes }: { readonly bytes: number }) {
    if (!(bytes > 0)) throw new UsageError(`A PrefixCache needs a positive number of bytes, not ${bytes}.`)
    this.limit = bytes
  }

  /** Bytes that it holds now. */
  get bytes(): number {
    return this.entries.reduce((sum, e) => sum + e.cache.bytes, 0)
  }

  /** The entry that covers most of a row under these edits. @param number the caller's number of the row @param total longest row of the first pass */
  async find(
    owner: CacheOwner,
    row: { readonly tokens: readonly number[]; readonly prompt: number; readonly number: number },
    total: number,
  ): Promise<FoundPrefix | undefined> {
    const edits = await editsKey(owner.edits)
    let best: (FoundPrefix & { entry: Entry }) | undefined
    for (const entry of this.entries) {
      if (entry.core !== owner.core || entry.edits !== edits) continue
      for (const cached of entry.cache.rows) {
        const length = entry.cache.usable(cached, row.tokens, row.prompt, row.number, total)
        if (length > (best?.length ?? 0)) best = { row: cached, length, total: entry.cache.total, entry }
      }
    }
    if (best) this.entries = [...this.entries.filter((e) => e !== best.entry), best.entry]
    return best
  }

  /** Keeps rows; those that it holds as a part of the new ones go. */
  async put(owner: CacheOwner, cache: KeyValueCache): Promise<void> {
    const edits = await editsKey(owner.edits)
    for (const row of cache.rows) {
      const kept = this.entries.filter(
        (e) => !(e.core === owner.core && e.edits === edits && e.cache.rows.every((old) => covers(row, old))),
      )
      this.entries = [...kept, { core: owner.core, edits, cache: new KeyValueCache(owner, [row], cache.total) }]
    }
    while (this.bytes > this.limit) this.entries.shift()
  }

  /** Forgets everything. */
  clear(): void {
    this.entries = []
  }
}

/** Whether a row begins with another one that was read under the same circumstances. */
const covers = (row: CachedRow, old: CachedRow) =>
  row.row === old.row &&
  row.prompt === old.prompt &&
  old.tokens.length <= row.tokens.length &&
  old.tokens.every((id, i) => row.tokens[i] === id)
