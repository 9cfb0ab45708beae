/** @file From what people write (names, patterns, aliases) to canonical sites of one model. */
import { listed, nearest, SiteError } from '../base/errors.ts'
import type { DecoderSpec } from '../models/spec.ts'
import { type SiteRow, siteRows, vocabulary } from './vocabulary.ts'

/** A site of a model, or the reason why it has none. */
export interface SiteInfo {
  /** Canonical name: `resid_post.3`. */
  readonly site: string
  readonly row: SiteRow
  readonly layer?: number
  /** TransformerLens and Hugging Face names of the same place. */
  readonly aliases: readonly string[]
  /** Why the model lacks it. */
  readonly absent?: string
}

/** Resolves site names for one model. */
export class SiteResolver {
  private readonly spec: DecoderSpec
  private readonly byName = new Map<string, SiteInfo>()
  private readonly byAlias = new Map<string, SiteInfo>()

  constructor(spec: DecoderSpec) {
    this.spec = spec
    for (const row of vocabulary) {
      const layers = row.per === 'layer' ? Array.from({ length: spec.layers }, (_, i) => i) : [undefined]
      for (const layer of layers) {
        const fill = (alias: string) => alias.replace('{L}', String(layer))
        const aliases = [...row.transformerLens, ...row.huggingFace(spec.modules), ...(row.more?.(spec, layer) ?? [])].map(fill)
        const reason = row.absent?.(spec, layer)
        const info: SiteInfo = {
          site: layer === undefined ? row.name : `${row.name}.${layer}`,
          row,
          ...(layer === undefined ? {} : { layer }),
          aliases,
          ...(reason ? { absent: reason } : {}),
        }
        this.byName.set(info.site, info)
        // A name belongs to the first site that the model has.
        for (const alias of aliases)
          if (this.byAlias.get(alias)?.absent !== undefined || !this.byAlias.has(alias)) this.byAlias.set(alias, info)
      }
    }
  }

  /** All sites, present and absent, in the order of a forward pass. */
  all(): SiteInfo[] {
    const order = (i: SiteInfo) => i.layer ?? -1
    const before = [...this.byName.values()].filter((i) => i.row.per === 'model' && !isAtEnd(i.row.name))
    const after = [...this.byName.values()].filter((i) => i.row.per === 'model' && isAtEnd(i.row.name))
    const blocks = [...this.byName.values()].filter((i) => i.row.per === 'layer').sort((a, b) => order(a) - order(b))
    return [...before, ...blocks, ...after]
  }

  /** The one site that a name or alias means; refuses patterns, unknown and absent sites. */
  one(text: string): SiteInfo {
    const found = this.many(text)
    if (found.length !== 1)
      throw new SiteError(`'${text}' means ${found.length} sites (${listed(found.map((f) => f.site))}); name one of them.`)
    return found[0] as SiteInfo
  }

  /** The sites that a name, alias or pattern means, at least one; refuses what the model lacks, with the reason. */
  many(text: string): SiteInfo[] {
    const exact = this.byName.get(text) ?? this.byAlias.get(text) ?? this.byAlias.get(text.replace(/\.output$/, ''))
    if (exact) {
      if (exact.absent) throw new SiteError(`The site '${exact.site}' does not exist in this model: ${exact.absent}.`)
      return [exact]
    }
    const parts = /^([a-z_]+|\*)(?:\.(.+))?$/.exec(text)
    if (!parts) throw this.unknown(text)
    const [, name, layerText] = parts as unknown as [string, string, string | undefined]
    const row = siteRows.get(name)
    if (name !== '*' && !row) throw this.unknown(text)
    if (row?.per === 'model') throw new SiteError(`The site '${row.name}' exists once in a model, not once a layer; write '${row.name}'.`)
    if (layerText === undefined) {
      if (row) throw new SiteError(`The site '${name}' needs a layer: '${name}.3', '${name}.*' or '${name}.{4..8}'.`)
      return this.all().filter((i) => !i.absent)
    }
    const layers = this.layers(layerText, text)
    const rows = row ? [row] : vocabulary.filter((r) => r.per === 'layer')
    const found = rows.flatMap((r) => layers.map((l) => this.byName.get(`${r.name}.${l}`) as SiteInfo))
    const present = found.filter((i) => !i.absent)
    if (present.length === 0 && found[0]?.absent)
      throw new SiteError(`The site '${found[0].site}' does not exist in this model: ${found[0].absent}.`)
    return present
  }

  /** Layers that `3`, `-1`, `*`, `{4..8}` or `{1,3}` mean. */
  private layers(text: string, whole: string): number[] {
    const n = this.spec.layers
    if (text === '*') return Array.from({ length: n }, (_, i) => i)
    const items = /^\{(.+)\}$/.exec(text)?.[1]?.split(',') ?? [text]
    const out: number[] = []
    for (const item of items) {
      const range = /^\s*(-?\d+)(?:\.\.(-?\d+))?\s*$/.exec(item)
      if (!range) throw this.unknown(whole)
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

  private unknown(text: string): SiteError {
    const near = nearest(text, [...this.byName.keys(), ...this.byAlias.keys()])
    return new SiteError(
      `There is no site '${text}'${near ? `; did you mean '${near}'?` : '.'} Sites are ${vocabulary.map((r) => (r.per === 'layer' ? `${r.name}.L` : r.name)).join(', ')}.`,
    )
  }
}

function isAtEnd(name: string): boolean {
  return name.startsWith('final_norm') || name.startsWith('logits') || name === 'last_hidden_state'
}
