/** @file Canonical sites in exports of known families: exporters name tensors by the module that computes them. */
import { FormatError } from '../../base/errors.ts'
import { type SiteRow, vocabulary } from '../../sites/vocabulary.ts'
import {
  cannotWrite,
  floatTypes,
  fusedSites,
  headsOf,
  innerName,
  isFused,
  type NodeProto,
  type OnnxFile,
  type OnnxTensor,
  order,
} from '../../tensor/index.ts'
import type { OnnxSite } from './sites.ts'

/** Modules relative to their block; the first that the file has is taken. */
type Paths = readonly string[]

/** How a family's blocks are called in exports, and where its sites are. */
interface Layout {
  readonly family: string
  /** Names of the stack of blocks, without the number. */
  readonly blocks: Paths
  /** Sites that a module puts out. */
  readonly outputs: Readonly<Record<string, Paths>>
  /** Sites that a module reads. */
  readonly inputs: Readonly<Record<string, Paths>>
  /** The attention module, in which the softmax is looked for. */
  readonly attention: Paths
  /** Whether the stream is the sum (norms before modules), or the norm of the sum (norms after). */
  readonly stream: 'sum' | { readonly mid: Paths; readonly post: Paths }
  readonly model: Readonly<Record<string, Paths>>
}

const layouts: readonly Layout[] = [
  {
    family: 'llama',
    blocks: ['/model/layers.'],
    attention: ['self_attn', 'attn'],
    outputs: {
      attn_in: ['input_layernorm'],
      q: ['self_attn/q_proj', 'attn/q_proj'],
      k: ['self_attn/k_proj', 'attn/k_proj'],
      v: ['self_attn/v_proj', 'attn/v_proj'],
      attn_out: ['self_attn/o_proj', 'attn/o_proj'],
      mlp_in: ['post_attention_layernorm'],
      mlp_pre: ['mlp/gate_proj'],
      mlp_pre_linear: ['mlp/up_proj'],
      mlp_out: ['mlp/down_proj'],
    },
    inputs: { z: ['self_attn/o_proj', 'attn/o_proj'], mlp_act: ['mlp/down_proj'] },
    stream: 'sum',
    model: { embeddings: ['/model/embed_tokens'], final_norm: ['/model/norm'] },
  },
  {
    family: 'gpt2',
    blocks: ['/transformer/h.', '/h.'],
    attention: ['attn'],
    outputs: { attn_in: ['ln_1'], attn_out: ['attn/c_proj'], mlp_in: ['ln_2'], mlp_pre: ['mlp/c_fc'], mlp_out: ['mlp/c_proj'] },
    inputs: { z: ['attn/c_proj'], mlp_act: ['mlp/c_proj'] },
    stream: 'sum',
    model: { embeddings: ['/transformer/wte', '/wte'], final_norm: ['/transformer/ln_f', '/ln_f'] },
  },
  {
    family: 'bert',
    blocks: ['/encoder/layer.', '/bert/encoder/layer.', '/roberta/encoder/layer.'],
    attention: ['attention/self'],
    outputs: {
      q: ['attention/self/query'],
      k: ['attention/self/key'],
      v: ['attention/self/value'],
      attn_out: ['attention/output/LayerNorm'],
      attn_out_post: ['attention/output/dense'],
      mlp_pre: ['intermediate/dense'],
      mlp_act: ['intermediate/intermediate_act_fn'],
      mlp_out: ['output/dense'],
    },
    inputs: { z: ['attention/output/dense'] },
    stream: { mid: ['attention/output/LayerNorm'], post: ['output/LayerNorm'] },
    model: { embeddings: ['/embeddings/word_embeddings', '/bert/embeddings/word_embeddings'] },
  },
]

/** What was recognised. */
export interface Recognised {
  readonly family?: string
  readonly layers: number
  readonly sites: readonly OnnxSite[]
  /** Canonical sites that the family has and the file does not, with the reason. */
  readonly missing: ReadonlyMap<string, string>
}

/** Key of the metadata with what an exported model was made of. */
export const recordKey = 'actlens.record'
/** Key of the metadata with the tensor of each canonical site. */
export const sitesKey = 'actlens.sites'

/** Looks for the names of a known family, or for the record of a file that was exported from here. */
export function recognise(file: OnnxFile, tensors: ReadonlyMap<string, OnnxTensor>): Recognised {
  const own = recorded(file, tensors)
  if (own) return own
  const names = [...tensors.keys()]
  for (const layout of layouts)
    for (const blocks of layout.blocks) {
      const numbers = names.flatMap((n) => (n.startsWith(blocks) ? (/^(\d+)\//.exec(n.slice(blocks.length))?.[1] ?? []) : [])).map(Number)
      const layers = Math.max(-1, ...numbers) + 1
      // A block of another design may have the same name: its modules tell.
      if (layers > 0 && new Finder(file, tensors).output(layout.outputs.mlp_out?.map((p) => `${blocks}0/${p}`) ?? []))
        return new Recogniser(layout, blocks, layers, new Finder(file, tensors)).all()
    }
  return { layers: 0, sites: [], missing: new Map() }
}

/** The sites that the metadata of a file of ours names. */
function recorded(file: OnnxFile, tensors: ReadonlyMap<string, OnnxTensor>): Recognised | undefined {
  const text = (key: string) => file.model.metadataProps.find((m) => m.key === key)?.value
  const [record, named] = [text(recordKey), text(sitesKey)]
  if (record === undefined || named === undefined) return undefined
  let facts: { family?: unknown; layers?: unknown }
  let places: Record<string, unknown>
  try {
    facts = JSON.parse(record)
    places = JSON.parse(named)
  } catch (error) {
    throw new FormatError(`The metadata '${recordKey}' and '${sitesKey}' of the file are no JSON; it was damaged or changed.`, {
      cause: error,
    })
  }
  const layers = Number(facts.layers)
  if (typeof facts.family !== 'string' || !Number.isInteger(layers) || layers < 0) return undefined
  const sites: OnnxSite[] = []
  const missing = new Map<string, string>()
  /** Scores and pattern of the fused node from which z comes. */
  const insideZ = (z: unknown, { name }: SiteRow): OnnxTensor | undefined => {
    let node = makers.get(String(z))
    while (node?.opType === 'Reshape') node = makers.get(node.input[0] as string)
    return node && (name === 'attn_scores' || name === 'attn_probs') && isFused(node, tensors) ? insideOf(node, name) : undefined
  }
  const known = new Set(Object.keys(places))
  const makers = new Map(file.graph.node.flatMap((n) => n.output.map((o) => [o, n] as const)))
  const put = (site: string, row: SiteRow, layer: number | undefined) => {
    const tensor = tensors.get(String(places[site])) ?? insideZ(places[site.replace(/attn_(scores|probs)/, 'z')], row)
    if (tensor && fits(row, tensor))
      sites.push({ site, tensor, axes: row.axes, ...(layer === undefined ? {} : { layer }), meaning: row.meaning })
    return tensor !== undefined
  }
  for (const prefix of ['', 'encoder.', 'decoder.', 'text.', 'vision.'])
    for (const row of vocabulary)
      for (const layer of row.per === 'layer' ? Array.from({ length: layers }, (_, i) => i) : [undefined]) {
        const site = `${prefix}${row.name}${layer === undefined ? '' : `.${layer}`}`
        if (put(site, row, layer) || (prefix !== '' && !known.has(site))) continue
        missing.set(site, 'the model that was exported lacks it, or hides it in a fused node')
      }
  return { family: facts.family, layers, sites, missing }
}

/** Finds what modules read and put out, by the names of tensors. */
class Finder {
  readonly tensors: ReadonlyMap<string, OnnxTensor>
  private readonly nodes: readonly NodeProto[]
  readonly makers = new Map<string, NodeProto>()
  readonly users = new Map<string, NodeProto[]>()

  constructor(file: OnnxFile, tensors: ReadonlyMap<string, OnnxTensor>) {
    this.tensors = tensors
    this.nodes = order(file.graph).map((i) => file.graph.node[i] as NodeProto)
    for (const node of this.nodes) {
      for (const name of node.output) this.makers.set(name, node)
      for (const name of node.input) this.users.set(name, [...(this.users.get(name) ?? []), node])
    }
  }

  /** A computed floating-point tensor that is no single number. */
  float(name: string | undefined): OnnxTensor | undefined {
    const t = name === undefined ? undefined : this.tensors.get(name)
    const values = t?.kind === 'computed' && t.dtype !== undefined && floatTypes.includes(t.dtype) && t.shape?.length !== 0
    return values && t.op !== 'DynamicQuantizeLinear' && t.op !== 'Constant' ? t : undefined
  }

  rank(t: OnnxTensor | undefined): number | undefined {
    return t?.shape?.length
  }

  private inside(node: NodeProto, paths: Paths): boolean {
    return paths.some((p) => node.output.some((o) => o.startsWith(`${p}/`)))
  }

  /** The last value that a module computes. */
  output(paths: Paths): OnnxTensor | undefined {
    for (const node of this.nodes.toReversed()) {
      if (!this.inside(node, paths)) continue
      // What quantises a module's result is named after it, but belongs to the next.
      const found = this.float(node.output.find((o) => paths.some((p) => o.startsWith(`${p}/`))))
      if (found) return found
    }
    return undefined
  }

  /** The value from outside that a module reads first. */
  input(paths: Paths): OnnxTensor | undefined {
    for (const node of this.nodes) {
      if (!this.inside(node, paths)) continue
      for (const name of node.input) {
        const maker = this.makers.get(name)
        const source = maker?.opType === 'DynamicQuantizeLinear' ? maker.input[0] : name
        const found = this.float(source)
        if (found && !paths.some((p) => found.name.startsWith(`${p}/`))) return found
      }
    }
    return undefined
  }

  /** The nodes of a module with this operator. */
  within(paths: Paths, ops: readonly string[]): NodeProto[] {
    return this.nodes.filter((n) => ops.includes(n.opType) && this.inside(n, paths))
  }

  /** What a value was before casts that change nothing. */
  origin(name: string): string {
    const maker = this.makers.get(name)
    if (maker?.opType !== 'Cast' && maker?.opType !== 'Identity') return name
    const from = maker.input[0] as string
    return this.tensors.get(from)?.dtype === this.tensors.get(name)?.dtype ? this.origin(from) : name
  }
}

const rowOf = (name: string) => vocabulary.find((row) => row.name === name) as SiteRow

/** A tensor that a fused node shows once it is written out. */
const insideOf = (node: NodeProto, site: (typeof fusedSites)[number]): OnnxTensor => ({
  name: innerName(node, site),
  kind: 'computed',
  dtype: 'float32',
  shape: site === 'z' ? [null, null, headsOf(node), null] : [null, headsOf(node), null, null],
  op: node.opType,
})

const fusedAttention = ['GroupQueryAttention', 'MultiHeadAttention', 'Attention', 'DecoderMaskedMultiHeadAttention']
const skipNorms = ['SkipSimplifiedLayerNormalization', 'SkipLayerNormalization']

class Recogniser {
  private readonly layout: Layout
  private readonly blocks: string
  private readonly layers: number
  private readonly find: Finder
  private readonly found = new Map<string, OnnxTensor>()
  private readonly reasons = new Map<string, string>()

  constructor(layout: Layout, blocks: string, layers: number, find: Finder) {
    this.layout = layout
    this.blocks = blocks
    this.layers = layers
    this.find = find
  }

  all(): Recognised {
    const { layout, find } = this
    for (const [site, paths] of Object.entries(layout.model)) this.put(site, find.output(paths))
    for (const output of ['logits', 'last_hidden_state']) this.put(output, find.float(output))
    for (let l = 0; l < this.layers; l++) this.block(l)
    const sites: OnnxSite[] = []
    const missing = new Map<string, string>()
    for (const row of vocabulary) {
      for (const layer of row.per === 'layer' ? Array.from({ length: this.layers }, (_, i) => i) : [undefined]) {
        const site = layer === undefined ? row.name : `${row.name}.${layer}`
        const tensor = this.found.get(site)
        if (tensor && fits(row, tensor))
          sites.push({ site, tensor, axes: row.axes, ...(layer === undefined ? {} : { layer }), meaning: row.meaning })
        else missing.set(site, this.reasons.get(site) ?? this.reason(row, tensor))
      }
    }
    return { family: layout.family, layers: this.layers, sites, missing }
  }

  private reason(row: SiteRow, tensor: OnnxTensor | undefined): string {
    if (tensor)
      return `its tensor '${tensor.name}' has not the axes [${row.axes.join(', ')}] of this site; read it as 'path:${tensor.name}'`
    return `exports of '${this.layout.family}' do not show where it is`
  }

  private put(site: string, tensor: OnnxTensor | undefined): void {
    if (tensor) this.found.set(site, tensor)
  }

  private block(l: number): void {
    const { layout, find } = this
    const at = (paths: Paths) => paths.map((p) => `${this.blocks}${l}/${p}`)
    for (const [site, paths] of Object.entries(layout.outputs)) this.put(`${site}.${l}`, find.output(at(paths)))
    for (const [site, paths] of Object.entries(layout.inputs)) this.put(`${site}.${l}`, find.input(at(paths)))
    // The sites have their heads apart: the reshape beside the projection is their place.
    for (const site of ['q', 'k', 'v'])
      this.apart(`${site}.${l}`, (t) => find.users.get(t.name)?.find((n) => n.opType === 'Reshape')?.output[0])
    this.apart(`z.${l}`, (t) => {
      const maker = find.makers.get(t.name)
      return maker?.opType === 'Reshape' ? maker.input[0] : undefined
    })
    this.pattern(l, at(layout.attention))
    if (layout.stream === 'sum') this.sums(l)
    else {
      const { mid, post } = layout.stream
      this.put(`resid_mid.${l}`, find.output(at(mid)))
      this.put(`mlp_in.${l}`, find.output(at(mid)))
      this.put(`resid_post.${l}`, find.output(at(post)))
      this.put(`mlp_out_post.${l}`, this.found.get(`mlp_out.${l}`))
      const before = l > 0 ? this.found.get(`resid_post.${l - 1}`) : find.input(at(['attention/self/query']))
      this.put(`resid_pre.${l}`, before)
      this.put(`attn_in.${l}`, before)
    }
  }

  private apart(site: string, near: (t: OnnxTensor) => string | undefined): void {
    const t = this.found.get(site)
    const apart = t && this.find.float(near(t))
    if (apart) this.found.set(site, apart)
    else if (t) this.reasons.set(site, `the file keeps its heads side by side in '${t.name}'; read that as 'path:${t.name}'`)
  }

  private pattern(l: number, attention: Paths): void {
    const { find } = this
    const softmax = this.find.within(attention, ['Softmax'])
    const fused = this.find.within(attention, fusedAttention)
    if (softmax.length === 1) {
      const node = softmax[0] as NodeProto
      this.put(`attn_probs.${l}`, this.find.float(node.output[0]))
      this.put(`attn_scores.${l}`, this.find.float(node.input[0]))
      return
    }
    const [node] = fused
    const reason = node && fused.length === 1 ? cannotWrite(node, find.tensors) : 'there are several of them'
    if (node && reason === undefined) {
      for (const site of fusedSites) {
        const known = this.found.get(`${site}.${l}`)
        if (!known || !fits(rowOf(site), known)) this.put(`${site}.${l}`, insideOf(node, site))
      }
      this.reasons.delete(`z.${l}`)
      return
    }
    const why = node
      ? `attention of layer ${l} is one fused ${node.opType} node, and ${reason}; export the model without fusion`
      : `layer ${l} has ${softmax.length} softmax nodes in its attention`
    for (const site of ['attn_probs', 'attn_scores']) this.reasons.set(`${site}.${l}`, why)
  }

  /** The residual stream around modules that read its norm: the sums with what they put out. */
  private sums(l: number): void {
    const { find } = this
    const sum = (module: string): { sum: string; other: string } | undefined => {
      const out = this.found.get(module)
      if (!out) return undefined
      for (const node of find.users.get(out.name) ?? []) {
        const other = node.input.find((i) => i !== out.name && find.float(i))
        if (node.opType === 'Add' && other) return { sum: node.output[0] as string, other }
        // A fused sum and norm hands the sum out last.
        if (skipNorms.includes(node.opType) && other && node.output[3]) return { sum: node.output[3], other }
      }
      return undefined
    }
    const mid = sum(`attn_out.${l}`)
    const post = sum(`mlp_out.${l}`)
    this.put(`resid_mid.${l}`, find.float(mid?.sum))
    this.put(`resid_post.${l}`, find.float(post?.sum))
    this.put(`attn_out_post.${l}`, this.found.get(`attn_out.${l}`))
    this.put(`mlp_out_post.${l}`, this.found.get(`mlp_out.${l}`))
    const before = l > 0 ? this.found.get(`resid_post.${l - 1}`) : mid && find.float(find.origin(mid.other))
    this.put(`resid_pre.${l}`, before)
  }
}

/** Whether a tensor can have the axes of a site: as many as it, as far as the file says. */
function fits(row: SiteRow, tensor: OnnxTensor): boolean {
  return tensor.shape === undefined || tensor.shape.length === row.axes.length
}
