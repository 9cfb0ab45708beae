/** @file The trunk of decoder-only language models: reads a record, traces the graph, marks the sites. */
import { add, attention, cut, gatherRows, input, lookup, mul, type Tensor, tanh, unsqueeze } from '../../tensor/index.ts'
import type { AttentionSpec, DecoderSpec } from '../spec.ts'
import { cacheName, inputNames, type SiteMarks, type TracedModel, type TraceOptions } from '../traced.ts'
import { Blocks, type Heads } from './blocks.ts'
import { type Parameters, Parts } from './parts.ts'
import { learnedIndex, PositionTables } from './positions.ts'

export type { Parameters } from './parts.ts'

/** What a decoder is traced into where it is a part of a larger model. */
export interface Surroundings {
  readonly marks: SiteMarks
  /** Its first segment. */
  readonly from: number
  /** What becomes of the embeddings [batch, pos, d_model] of the ids [batch, pos]. */
  readonly embed: (x: Tensor, ids: Tensor) => Tensor
}

/** Traces a decoder-only model. */
export function traceDecoder(spec: DecoderSpec, parameters: Parameters, options: TraceOptions, around?: Surroundings): TracedModel {
  return new DecoderTrunk(spec, parameters, options, around).trace()
}

class DecoderTrunk {
  private readonly spec: DecoderSpec
  private readonly parameters: Parameters
  private readonly options: TraceOptions
  private readonly around: Surroundings | undefined
  private readonly parts: Parts
  private readonly tables: PositionTables
  private readonly slots = input(inputNames.slots, 'int64', ['batch', 'pos'])
  private readonly positions = input(inputNames.positions, 'int64', ['batch', 'pos'])
  private readonly lastSlot = input(inputNames.lastSlot, 'int32', ['batch'])
  private readonly total = input(inputNames.total, 'int32', [])
  private readonly lastIndex = input(inputNames.lastIndex, 'int64', ['batch'])
  private readonly caches: { keys: Tensor; values: Tensor }[] = []
  /** Added to the scores of every layer. */
  private readonly bias: Tensor | undefined

  constructor(spec: DecoderSpec, parameters: Parameters, options: TraceOptions, around: Surroundings | undefined) {
    this.around = around
    this.spec = spec
    this.parameters = parameters
    this.options = options
    this.parts = new Parts(parameters, { slots: options.slots, ...(around ? { marks: around.marks } : {}) })
    this.tables = new PositionTables(parameters, this.total)
    const { positions } = spec
    if (positions.kind === 'alibi') this.bias = this.tables.alibi(positions, options.cache ? 'total' : 'pos')
  }

  trace(): TracedModel {
    const { spec, parts, parameters } = this
    const blocks = new Blocks({
      parts,
      parameters,
      stack: spec,
      axes: ['batch', 'pos'],
      segmentsBefore: this.from,
      attend: (heads, a, site, layer) => this.attend(heads, a, site, layer),
    })
    // The final norm and the unembedding are a segment of their own.
    let x = cut(blocks.all(this.embed()), this.from + spec.layers)
    if (this.options.lastOnly) x = unsqueeze(gatherRows(x, this.lastIndex), 1)
    if (spec.finalNorm) x = parts.mark('final_norm', parts.norm('final_norm', '', spec.finalNorm, x))
    const logits = this.unembed(x)
    return { logits, sites: parts.marks.sites, inner: parts.marks.inner, caches: this.caches }
  }

  private get from(): number {
    return this.around?.from ?? 0
  }

  private embed(): Tensor {
    const { spec, parts } = this
    const ids = input(inputNames.ids, 'int64', ['batch', 'pos'])
    const width = spec.narrow?.width ?? spec.dModel
    let x = lookup(this.parameters.get(spec.embedding, [spec.vocab, width]), ids)
    if (spec.narrow) x = parts.linear(x, spec.narrow.in, width, spec.dModel)
    if (spec.embeddingScale) x = mul(x, spec.embeddingScale)
    if (this.around) x = this.around.embed(x, ids)
    x = cut(parts.mark('embeddings', x), this.from)
    if (spec.positions.kind === 'learned') {
      const { weight, count, offset } = spec.positions
      const table = this.parameters.get(weight, [count + offset, spec.dModel])
      x = add(x, parts.mark('pos_embeddings', lookup(table, learnedIndex(this.positions, offset))))
    }
    return spec.embeddingNorm ? parts.norm('embeddings_norm', '', spec.embeddingNorm, x) : x
  }

  private unembed(x: Tensor): Tensor {
    const { spec, parts } = this
    const { narrow } = spec
    const read = narrow ? parts.linear(x, narrow.out, spec.dModel, narrow.width) : x
    let logits = parts.mark('logits_pre', parts.linear(read, spec.head, narrow?.width ?? spec.dModel, spec.vocab))
    if (spec.logitScale) logits = mul(logits, spec.logitScale)
    if (spec.logitSoftcap) logits = mul(tanh(mul(logits, 1 / spec.logitSoftcap)), spec.logitSoftcap)
    return parts.mark('logits', logits)
  }

  private attend(heads: Heads, a: AttentionSpec, site: (name: string) => string, layer: number): Tensor {
    const { spec, options } = this
    const { kvHeads, headDim } = spec
    const cache = (part: 'keys' | 'values') => input(cacheName(part, layer), 'float32', ['batch', kvHeads, 'capacity', headDim])
    const past = options.cache ? { keys: cache('keys'), values: cache('values') } : undefined
    const rotary = a.rotary && { ...this.tables.rotary(a.rotary), positions: this.positions }
    const result = attention(
      {
        ...heads,
        lastSlot: this.lastSlot,
        total: this.total,
        slots: this.slots,
        ...(rotary ? { rotary } : {}),
        ...(past ? { past } : {}),
        ...(this.bias ? { bias: this.bias } : {}),
      },
      {
        heads: spec.heads,
        kvHeads,
        headDim,
        scale: a.scale,
        interleaved: a.rotary?.interleaved ?? false,
        explicitPositions: options.explicitPositions,
        ...(a.window ? { window: a.window } : {}),
        ...(a.softcap ? { softcap: a.softcap } : {}),
      },
    )
    for (const name of ['attn_scores', 'attn_probs', ...(rotary ? ['q_rot', 'k_rot'] : [])]) this.parts.inside(site(name), result.z, name)
    if (past) this.caches.push({ keys: result.keys, values: result.values })
    return result.z
  }
}
