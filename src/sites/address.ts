/** @file From what people write (names, patterns, aliases) to canonical sites of one model. */
import { listed, nearest, SiteError } from '../base/errors.ts'
import type { SequenceName, StackView } from '../models/architecture.ts'
import { type SiteRow, siteRows, vocabulary } from './vocabulary.ts'

/** A site of a model, or the reason why it has none. */
export interface SiteInfo {
  /** Canonical name: `resid_post.3`, or `encoder.resid_post.3` in a model of several stacks. */
  readonly site: string
  readonly row: SiteRow
  /** The stack that it is in. */
  readonly stack: StackView
  readonly layer?: number
  /** TransformerLens and Hugging Face names of the same place. */
  readonly aliases: readonly string[]
  /** Why the model lacks it. */
  readonly absent?: string
}

/** The sequence whose positions a site has: that of its stack, or the one that the stack reads where it has none of its own. */
export function sequenceOf({ row, stack }: SiteInfo): SequenceName {
  return row.axes.includes('source') && !row.axes.includes('pos') ? 'source' : (stack.sequence ?? 'text')
}

/** The axis of a site that counts its positions; -1 where it has none. */
export function positionAxis(row: SiteRow): number {
  const own = row.axes.indexOf('pos')
  return own >= 0 ? own : row.axes.indexOf('source')
}

/** Resolves site names for one model. */
export class SiteResolver {
  private readonly stacks: readonly StackView[]
  private readonly byName = new Map<string, SiteInfo>()
  private readonly byAlias = new Map<string, SiteInfo>()

  /** @param stacks in the order of a forward pass. */
  constructor(stacks: readonly StackView[]) {
    this.stacks = stacks
    for (const stack of stacks)
      for (const row of vocabulary) {
        // Of several stacks, one unembeds.
        if (row.unique && stacks.length > 1 && !(row.extra ? stack.extras?.includes(row.name) : stack.head)) continue
        const layers = row.per === 'layer' ? Array.from({ length: stack.layers }, (_, i) => i) : [undefined]
        for (const layer of layers) this.add(siteInfo(stack, row, layer))
      }
  }

  private add(info: SiteInfo): void {
    this.byName.set(info.site, info)
    // A name belongs to the first site that the model has.
    for (const alias of info.aliases)
      if (this.byAlias.get(alias)?.absent !== undefined || !this.byAlias.has(alias)) this.byAlias.set(alias, info)
  }

  /** All sites, present and absent, in the order of a forward pass. */
  all(): SiteInfo[] {
    return this.stacks.flatMap((s) => this.ofStack(s))
  }

  private ofStack(stack: StackView): SiteInfo[] {
    const own = [...this.byName.values()].filter((i) => i.stack === stack)
    const order = (i: SiteInfo) => i.layer ?? -1
    const before = own.filter((i) => i.row.per === 'model' && !isAtEnd(i.row.name))
    const after = own.filter((i) => i.row.per === 'model' && isAtEnd(i.row.name))
    const blocks = own.filter((i) => i.row.per === 'layer').sort((a, b) => order(a) - order(b))
    return [...before, ...blocks, ...after]
  }

  /** The one site that a name or alias means; refuses patterns, unknown and absent sites. */
  one(text: string): SiteInfo {
    const found = this.many(text)
    if (found.length !== 1)
      throw new SiteError(`'${text}' means ${found.length} sites (${listed(found.map((f) => f.site))}); name one of them.`)
    return found[0] as SiteInfo
  }

  /** The sites that a name, alias or pattern means, at least one; refuses what the model lacks, with the reason. A pattern without a prefix means all stacks. */
  many(text: string): SiteInfo[] {
    const exact = this.byName.get(text) ?? this.byAlias.get(text) ?? this.byAlias.get(text.replace(/\.output$/, ''))
    if (exact) {
      if (exact.absent) throw new SiteError(`The site '${exact.site}' does not exist in this model: ${exact.absent}.`)
      return [exact]
    }
    const prefixed = this.stacks.find((s) => s.prefix && text.startsWith(s.prefix))
    if (prefixed) return this.within(prefixed, text.slice((prefixed.prefix as string).length), text)
    const plain = this.stacks.find((s) => !s.prefix)
    if (plain) return this.within(plain, text, text)
    const parts = pattern.exec(text)
    const row = siteRows.get(parts?.[1] ?? '')
    if (row && !/[*{]/.test(text))
      throw new SiteError(
        `This model has several stacks: write ${this.stacks.map((s) => `'${s.prefix ?? ''}${text}'`).join(' or ')}, not '${text}'.`,
      )
    const tried = this.stacks.map((s) => {
      try {
        return this.within(s, text, text)
      } catch (error) {
        return error as Error
      }
    })
    const found = tried.flatMap((t) => (t instanceof Error ? [] : t))
    if (found.length === 0) throw tried[0]
    return found
  }

  /** The sites of a stack; `whole` is what was written, for messages. */
  private within(stack: StackView, text: string, whole: string): SiteInfo[] {
    const parts = pattern.exec(text)
    if (!parts) throw this.unknown(whole)
    const [, name, layerText] = parts as unknown as [string, string, string | undefined]
    const row = siteRows.get(name)
    if (name !== '*' && !row) throw this.unknown(whole)
    if (row?.per === 'model') {
      const at = this.stacks.map((s) => siteName(s, row)).find((n) => this.byName.has(n)) ?? row.name
      throw new SiteError(
        `The site '${row.name}' exists once in a ${this.stacks.length > 1 ? 'stack' : 'model'}, not once a layer; write '${at}'.`,
      )
    }
    if (layerText === undefined) {
      if (row) throw new SiteError(`The site '${name}' needs a layer: '${name}.3', '${name}.*' or '${name}.{4..8}'.`)
      return this.ofStack(stack).filter((i) => !i.absent)
    }
    const layers = layersOf(stack, layerText, whole)
    if (!layers) throw this.unknown(whole)
    const rows = row ? [row] : vocabulary.filter((r) => r.per === 'layer')
    const found = rows.flatMap((r) => layers.map((l) => this.byName.get(siteName(stack, r, l)) as SiteInfo))
    const present = found.filter((i) => !i.absent)
    if (present.length === 0 && found[0]?.absent)
      throw new SiteError(`The site '${found[0].site}' does not exist in this model: ${found[0].absent}.`)
    return present
  }

  private unknown(text: string): SiteError {
    const near = nearest(text, [...this.byName.keys(), ...this.byAlias.keys()])
    const prefixes = this.stacks.flatMap((s) => (s.prefix ? [`'${s.prefix}'`] : []))
    const where = prefixes.length > 0 ? `, with the prefix ${prefixes.join(' or ')}` : ''
    return new SiteError(
      `There is no site '${text}'${near ? `; did you mean '${near}'?` : '.'} Sites are ${vocabulary.map((r) => (r.per === 'layer' ? `${r.name}.L` : r.name)).join(', ')}${where}.`,
    )
  }
}

const pattern = /^([a-z_]+|\*)(?:\.(.+))?$/

function siteName({ prefix = '' }: StackView, row: SiteRow, layer?: number): string {
  return `${row.unique ? '' : prefix}${row.name}${layer === undefined ? '' : `.${layer}`}`
}

function siteInfo(stack: StackView, row: SiteRow, layer: number | undefined): SiteInfo {
  const fill = (alias: string) => alias.replace('{L}', String(layer))
  const lens = row.transformerLens.map((n) => `${row.unique ? '' : (stack.prefix ?? '')}${n}`)
  const foreign = stack.only && !stack.only.includes(row.name)
  const more = stack.only ? [] : (row.more?.(stack, layer) ?? [])
  const aliases = [...lens, ...row.huggingFace(stack.modules), ...more].map(fill)
  const reason = foreign
    ? `the blocks of '${stack.family}' are of another make; its sites are ${listed(stack.only ?? [], 20)}`
    : stack.only
      ? undefined
      : row.absent?.(stack, layer)
  return {
    site: siteName(stack, row, layer),
    row,
    stack,
    ...(layer === undefined ? {} : { layer }),
    aliases,
    ...(reason ? { absent: reason } : {}),
  }
}

/** Layers that `3`, `-1`, `*`, `{4..8}` or `{1,3}` mean; undefined where it is none of these. */
function layersOf({ layers: n }: StackView, text: string, whole: string): number[] | undefined {
  if (text === '*') return Array.from({ length: n }, (_, i) => i)
  const items = /^\{(.+)\}$/.exec(text)?.[1]?.split(',') ?? [text]
  const out: number[] = []
  for (const item of items) {
    const range = /^\s*(-?\d+)(?:\.\.(-?\d+))?\s*$/.exec(item)
    if (!range) return undefined
    const at = (s: string) => {
      const value = Number(s) < 0 ? Number(s) + n : Number(s)
      if (value < 0 || value >= n) throw new SiteError(`'${whole}' asks for layer ${s}, but this model has layers 0 to ${n - 1}.`)
      return value
    }
    const from = at(range[1] as string)
    const to = range[2] === undefined ? from : at(range[2])
    if (to < from) throw new SiteError(`'${whole}' asks for layers ${from} to ${to}, which is no layer at all.`)
    for (let l = from; l <= to; l++) out.push(l)
  }
  return [...new Set(out)]
}

function isAtEnd(name: string): boolean {
  return name.startsWith('final_norm') || name.startsWith('logits') || name === 'last_hidden_state'
}
