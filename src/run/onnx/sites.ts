/** @file Sites of an ONNX model: every tensor by its name, and canonical names where the family was recognised. */
import { listed, nearest, SiteError } from '../../base/errors.ts'
import type { AxisName } from '../../sites/vocabulary.ts'
import { floatTypes, type OnnxTensor } from '../../tensor/index.ts'

/** Prefix of the names of tensors of a file, set apart from canonical sites. */
export const pathPrefix = 'path:'

/** A place in an ONNX model. */
export interface OnnxSite {
  /** `resid_post.3`, or `path:` and the tensor's name in the file. */
  readonly site: string
  readonly tensor: OnnxTensor
  /** Names of the axes, where they are known. */
  readonly axes?: readonly AxisName[]
  readonly layer?: number
  /** What it is, for canonical sites. */
  readonly meaning?: string
}

/** Resolves names, aliases and patterns to tensors of one file. */
export class OnnxSites {
  private readonly byName = new Map<string, OnnxSite>()
  private readonly canonical: ReadonlyMap<string, OnnxSite>
  private readonly missing: ReadonlyMap<string, string>
  private readonly layers: number

  constructor(tensors: ReadonlyMap<string, OnnxTensor>, canonical: readonly OnnxSite[], missing: ReadonlyMap<string, string>) {
    this.canonical = new Map(canonical.map((s) => [s.site, s]))
    this.missing = missing
    this.layers = Math.max(0, ...canonical.map((s) => (s.layer ?? -1) + 1))
    const axes = new Map(canonical.map((s) => [s.tensor.name, s.axes]))
    for (const s of canonical) this.byName.set(s.site, s)
    for (const tensor of tensors.values()) {
      const known = axes.get(tensor.name)
      this.byName.set(pathPrefix + tensor.name, { site: pathPrefix + tensor.name, tensor, ...(known ? { axes: known } : {}) })
    }
  }

  /** All sites: canonical ones first, then every tensor in the file's order. */
  all(): OnnxSite[] {
    return [...this.byName.values()]
  }

  /** Canonical sites that this file does not have, with the reason. */
  absent(): ReadonlyMap<string, string> {
    return this.missing
  }

  /** The one site that a name means. */
  one(text: string): OnnxSite {
    const found = this.many(text)
    if (found.length !== 1)
      throw new SiteError(`'${text}' means ${found.length} sites (${listed(found.map((f) => f.site))}); name one of them.`)
    return found[0] as OnnxSite
  }

  /** The sites that a name or pattern means, at least one. `*` stands for any characters in a `path:` name, for any layer in a canonical one. */
  many(text: string): OnnxSite[] {
    const exact = this.byName.get(text)
    if (exact) return [exact]
    const reason = this.missing.get(text)
    if (reason) throw new SiteError(`The site '${text}' cannot be had from this file: ${reason}.`)
    const found = text.startsWith(pathPrefix) ? this.matching(text) : this.canonicalPattern(text)
    if (found.length > 0) return found
    const near = nearest(text.startsWith(pathPrefix) ? text : pathPrefix + text, this.byName.keys()) ?? nearest(text, this.canonical.keys())
    const hint =
      this.canonical.size === 0
        ? "the file is of no family that is recognised, so its sites are its tensors, as 'path:NAME'"
        : "its sites are canonical names and its tensors, as 'path:NAME'"
    throw new SiteError(
      `There is no site '${text}' in this file${near ? `; did you mean '${near}'?` : ';'} ${near ? '' : `${hint}.`}`.trim(),
    )
  }

  private matching(text: string): OnnxSite[] {
    if (!text.includes('*')) return []
    const pattern = new RegExp(
      `^${text
        .split('*')
        .map((p) => p.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&'))
        .join('.*')}$`,
    )
    // A pattern asks for what can be read as numbers; naming one tensor says more.
    return this.all().filter((s) => s.site.startsWith(pathPrefix) && s.tensor.kind === 'computed' && isFloat(s) && pattern.test(s.site))
  }

  private canonicalPattern(text: string): OnnxSite[] {
    const parts = /^([a-z_]+|\*)\.(\*|-?\d+|\{.+\})$/.exec(text)
    if (!parts) return []
    const [, name, layers] = parts as unknown as [string, string, string]
    const wanted = layers === '*' ? undefined : new Set(layersOf(layers, this.layers))
    return [...this.canonical.values()].filter(
      (s) => s.layer !== undefined && (name === '*' || s.site === `${name}.${s.layer}`) && (!wanted || wanted.has(s.layer)),
    )
  }
}

/** Layers that `3`, `-1`, `{4..8}` or `{1,3}` mean. */
function layersOf(text: string, count: number): number[] {
  const items = text.startsWith('{') ? text.slice(1, -1).split(',') : [text]
  const at = (s: string) => (Number(s) < 0 ? Number(s) + count : Number(s))
  return items.flatMap((item) => {
    const [from, to = from] = item.split('..') as [string, string?]
    return Array.from({ length: Math.max(0, at(to) - at(from) + 1) }, (_, i) => at(from) + i)
  })
}

/** Whether a site holds numbers that edits and gradients can change. */
export const isFloat = (s: OnnxSite) => s.tensor.dtype !== undefined && floatTypes.includes(s.tensor.dtype)
