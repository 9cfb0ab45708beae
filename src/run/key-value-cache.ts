/** @file Keys and values of rows that a model has read: continued any number of times, saved with a record of what they belong to. */

import { FormatError, UsageError } from '../base/errors.ts'
import { sha256 } from '../base/hash.ts'
import { type NDArray, sizeOf } from '../base/types.ts'
import { cacheHolds } from '../models/rope.ts'
import { isFunction, type PreparedEdit } from '../sites/prepare.ts'
import { maskOf } from '../sites/where.ts'
import type { ModelCore } from './core.ts'
import type { ModelOrigin } from './model.ts'

/** Keys and values of one row: for each layer [kv_head, pos, d_head]. */
export interface CachedRow {
  readonly tokens: readonly number[]
  /** Tokens that were the prompt's when they were read. */
  readonly prompt: number
  /** Its number in the batch in which it was read. */
  readonly row: number
  readonly keys: readonly Float32Array[]
  readonly values: readonly Float32Array[]
}

/** What keys and values belong to. */
export interface CacheOwner {
  readonly core: ModelCore
  readonly origin: ModelOrigin
  readonly edits: readonly PreparedEdit[]
}

const format = 'actlens key-value cache'

/** Keys and values of one row or several: an immutable value, which any number of generations may go on from. */
export class KeyValueCache {
  readonly rows: readonly CachedRow[]
  /** Longest row of the pass in which they were computed: rotations may depend on it. */
  readonly total: number
  private readonly owner: CacheOwner

  constructor(owner: CacheOwner, rows: readonly CachedRow[], total: number) {
    this.owner = owner
    this.rows = rows
    this.total = total
  }

  /** Token ids of each row. */
  get tokens(): readonly (readonly number[])[] {
    return this.rows.map((r) => r.tokens)
  }

  /** Bytes that it holds. */
  get bytes(): number {
    return this.rows.reduce((sum, r) => sum + [...r.keys, ...r.values].reduce((s, a) => s + a.byteLength, 0), 0)
  }

  /** Refuses a generation by another model or under other edits. */
  async check(user: CacheOwner): Promise<void> {
    if (user.core !== this.owner.core)
      throw new UsageError('The cache belongs to another load of a model; save it and read it with this one, or prefill again.')
    if ((await editsKey(user.edits)) !== (await editsKey(this.owner.edits)))
      throw new UsageError('The cache was computed under other edits, so its keys and values are not those of this run; prefill again.')
  }

  /**
   * How many positions of a row can be taken over.
   * @param row the caller's number of the row @param total longest row of the first pass
   */
  usable(cached: CachedRow, tokens: readonly number[], prompt: number, row: number, total: number): number {
    const { core, edits } = this.owner
    if (!cacheHolds(core.rotations, this.total, total)) return 0
    // The last token is read again: its logits choose the next one.
    const most = Math.min(cached.tokens.length, tokens.length - 1)
    let n = 0
    while (n < most && cached.tokens[n] === tokens[n]) n++
    for (const e of edits) n = Math.min(n, sameUntil(e, cached, prompt, row, n))
    return n
  }

  /**
   * Writes a safetensors file: `keys.ROW.LAYER` and `values.ROW.LAYER` [kv_head, pos, d_head], and a record of model, edits and tokens.
   * @throws UsageError where function edits are in force, which no file can hold.
   */
  async save(path: string): Promise<void> {
    const { core, origin, edits } = this.owner
    if (edits.some((e) => isFunction(e.edit)))
      throw new UsageError(
        'A cache that was computed under function edits cannot be saved, since nobody could tell whether they are the same.',
      )
    const { kvHeads, headDim } = core.writer
    const tensors: Record<string, NDArray> = {}
    for (const [b, row] of this.rows.entries())
      for (const part of ['keys', 'values'] as const)
        for (const [layer, data] of row[part].entries())
          tensors[`${part}.${b}.${layer}`] = { dtype: 'float32', shape: [kvHeads, row.tokens.length, headDim], data }
    const { writeSafetensors } = await import('../models/formats/index.ts')
    await writeSafetensors(path, tensors, {
      format,
      model: origin.id,
      model_hash: await origin.hash(),
      precision: core.weights.precision,
      edits: await editsKey(edits),
      total: String(this.total),
      rows: JSON.stringify(this.rows.map(({ tokens, prompt, row }) => ({ tokens, prompt, row }))),
    })
  }

  /** Reads a file for a model with its edits. @throws UsageError where it belongs to others, FormatError for damaged files. */
  static async read(path: string, owner: CacheOwner): Promise<KeyValueCache> {
    const { openSafetensors } = await import('../models/formats/index.ts')
    const store = await openSafetensors(path)
    try {
      const { metadata } = store
      if (metadata?.get('format') !== format) throw new FormatError(`${path} holds no keys and values of a run; write one with save().`)
      const { core, origin, edits } = owner
      const facts: readonly (readonly [string, string, string])[] = [
        ['model_hash', await origin.hash(), `another model (${metadata.get('model')}), or another version of it`],
        ['precision', core.weights.precision, `the precision ${metadata.get('precision')}`],
        ['edits', await editsKey(edits), 'other edits'],
      ]
      for (const [key, own, words] of facts)
        if (metadata.get(key) !== own)
          throw new UsageError(`${path} was computed with ${words}, so it cannot be continued here; prefill again.`)
      const { kvHeads, headDim, layers } = core.writer
      const listed = rowsOf(String(metadata.get('rows') ?? '[]'), path)
      const rows: CachedRow[] = []
      for (const [b, row] of listed.entries()) {
        const read = async (part: string) => {
          const all: Float32Array[] = []
          for (let layer = 0; layer < layers; layer++) {
            const data = await store.readFloat32(`${part}.${b}.${layer}`)
            if (data.length !== sizeOf([kvHeads, row.tokens.length, headDim]))
              throw new FormatError(
                `${path}: ${part}.${b}.${layer} has ${data.length} values, which do not fit its ${row.tokens.length} tokens.`,
              )
            all.push(data)
          }
          return all
        }
        rows.push({ ...row, keys: await read('keys'), values: await read('values') })
      }
      return new KeyValueCache(owner, rows, Number(metadata.get('total')))
    } finally {
      await store.close()
    }
  }
}

function rowsOf(text: string, path: string): Pick<CachedRow, 'tokens' | 'prompt' | 'row'>[] {
  const rows = JSON.parse(text) as Pick<CachedRow, 'tokens' | 'prompt' | 'row'>[]
  const whole =
    rows.length > 0 && rows.every((r) => Array.isArray(r.tokens) && r.tokens.every(Number.isInteger) && Number.isInteger(r.prompt))
  if (!whole) throw new FormatError(`${path} does not say which tokens its keys and values belong to.`)
  return rows
}

/** The first of `n` positions at which an edit does another thing in the new run than it did in the cached one. */
function sameUntil(e: PreparedEdit, cached: CachedRow, prompt: number, row: number, n: number): number {
  // Values by position or row are laid out for the batch in which they were given.
  const laid = [...e.params.values()].some((p) => p.positional)
  if (laid && (cached.row !== row || cached.prompt !== prompt)) return 0
  if (!e.masked) return n
  const mask = (number: number, length: number) =>
    maskOf(e.edit.where ?? {}, { rows: [cached.tokens], start: [0], width: n, prompt: [length], origin: [number] }).mask
  const [before, after] = [mask(cached.row, cached.prompt), mask(row, prompt)]
  const at = before.findIndex((v, i) => v !== after[i])
  return at < 0 ? n : at
}

const keys = new WeakMap<readonly PreparedEdit[], Promise<string>>()

/** What tells one list of edits from another: SHA-256 of their structure and of all their numbers. */
export function editsKey(edits: readonly PreparedEdit[]): Promise<string> {
  let key = keys.get(edits)
  if (!key) {
    key = hashEdits(edits)
    keys.set(edits, key)
  }
  return key
}

async function hashEdits(edits: readonly PreparedEdit[]): Promise<string> {
  const parts: Uint8Array[] = []
  const text = (value: unknown) => parts.push(new TextEncoder().encode(JSON.stringify(value)))
  const array = (name: string, { shape, data }: NDArray) => {
    text([name, shape])
    parts.push(new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
  }
  for (const e of edits) {
    const { when, layers: _, ...where } = e.edit.where ?? {}
    text([e.structure, where, when && [e.when?.threshold, e.when?.above]])
    if (e.when) array('when', e.when.vector)
    for (const [name, p] of e.params) {
      text(p.seed ?? null)
      array(name, p.array)
    }
    for (const [name, input] of Object.entries(e.own?.inputs ?? {})) array(name, input.array)
  }
  const all = new Uint8Array(parts.reduce((n, p) => n + p.length, 0))
  let at = 0
  for (const p of parts) {
    all.set(p, at)
    at += p.length
  }
  return sha256(all)
}
