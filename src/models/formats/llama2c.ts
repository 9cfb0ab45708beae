/** @file The `.bin` files of llama2.c (version 0): seven integers, then float32 weights, found in place under their Hugging Face names. */
import { FormatError, listed } from '../../base/errors.ts'
import { type ByteSource, checkRange, toSource } from './bytes.ts'
import { closingOnFailure, type StoredTensor, WeightStore } from './store.ts'

/** The sizes that the header of a llama2.c file gives. */
export interface Llama2cConfig {
  readonly dim: number
  readonly hiddenDim: number
  readonly layers: number
  readonly heads: number
  readonly kvHeads: number
  readonly vocab: number
  /** Longest sequence the model was trained for. */
  readonly maxPos: number
  /** Whether the output weights are the embeddings. */
  readonly tied: boolean
}

/**
 * The weights of a llama2.c file, with their Hugging Face names and shapes. The rows of q and k are in llama2.c's order: rotary
 * positions turn neighbouring pairs (x0, x1), whereas Hugging Face checkpoints turn halves.
 */
export class Llama2cStore extends WeightStore {
  readonly config: Llama2cConfig

  constructor(name: string, source: ByteSource, tensors: readonly StoredTensor[], config: Llama2cConfig) {
    super({ format: 'llama2c', name, tensors, sources: [source] })
    this.config = config
  }
}

/** Options of {@link openLlama2c}. */
export interface Llama2cOptions {
  /** Where the model lies inside a bigger file; the whole file when absent. */
  readonly range?: { readonly offset: number; readonly length: number }
}

const HEADER_BYTES = 28
const headerFields = ['dim', 'hidden_dim', 'n_layers', 'n_heads', 'n_kv_heads', 'vocab_size', 'seq_len'] as const
/** First integer of version 1 and 2 files: "ak42". */
const VERSIONED = 0x616b3432

/** Opens a llama2.c model; throws FormatError where the header is implausible or the length is not what it implies. */
export async function openLlama2c(from: string | ByteSource, { range }: Llama2cOptions = {}): Promise<Llama2cStore> {
  const source = await toSource(from)
  return closingOnFailure([source], async () => {
    const { offset, length } = range ?? { offset: 0, length: source.size }
    checkRange(source, offset, length)
    if (length < HEADER_BYTES) {
      throw new FormatError(
        `${source.name} has ${length} bytes, too few for a llama2.c model, whose header alone has ${HEADER_BYTES}; check the file.`,
      )
    }
    const config = readConfig(await source.read(offset, HEADER_BYTES), source.name)
    const expected = HEADER_BYTES + 4 * parameters(config)
    if (length !== expected) {
      throw new FormatError(
        `${source.name} should have ${expected} bytes by its llama2.c header (${describe(config)}), but has ${length}; fetch it again or check that it is a version 0 file.`,
      )
    }
    return new Llama2cStore(source.name, source, place(config, source, offset + HEADER_BYTES), config)
  })
}

function readConfig(header: Uint8Array, name: string): Llama2cConfig {
  const view = new DataView(header.buffer, header.byteOffset, HEADER_BYTES)
  if (view.getUint32(0, true) === VERSIONED) {
    throw new FormatError(
      `${name} is a llama2.c file of version ${view.getInt32(4, true)}, but only version 0 is read; export it with --version 0.`,
    )
  }
  const values = headerFields.map((_, i) => view.getInt32(i * 4, true))
  const [dim, hiddenDim, layers, heads, kvHeads, signedVocab, maxPos] = values as [number, number, number, number, number, number, number]
  const config = { dim, hiddenDim, layers, heads, kvHeads, vocab: Math.abs(signedVocab), maxPos, tied: signedVocab > 0 }
  const rules: Readonly<Record<string, boolean>> = {
    'every size is at least 1': [dim, hiddenDim, layers, heads, kvHeads, config.vocab, maxPos].every((size) => size >= 1),
    'n_heads divides dim': dim % heads === 0,
    'a head has an even width': (dim / heads) % 2 === 0,
    'n_kv_heads divides n_heads': heads % kvHeads === 0,
  }
  const broken = Object.keys(rules).filter((rule) => !rules[rule])
  if (broken.length > 0) {
    const given = headerFields.map((field, i) => `${field} ${values[i]}`)
    throw new FormatError(
      `${name} is not a llama2.c model: of its header (${listed(given)}) it does not hold that ${broken[0]}; check the file.`,
    )
  }
  return config
}

function describe({ dim, hiddenDim, layers, heads, kvHeads, vocab, maxPos }: Llama2cConfig): string {
  return `dim ${dim}, hidden ${hiddenDim}, ${layers} layers, ${heads} heads, ${kvHeads} key-value heads, vocabulary ${vocab}, context ${maxPos}`
}

/** One row for each run of tensors in the file: a per-layer run holds all layers one after the other; without a name it is skipped. */
interface Run {
  readonly name?: string
  readonly shape: readonly number[]
  readonly perLayer?: boolean
}

function runs({ dim, hiddenDim, heads, kvHeads, vocab, maxPos, tied }: Llama2cConfig): Run[] {
  const kvDim = (dim / heads) * kvHeads
  // Rotary tables (cosines, then sines) that old programs read; positions are computed instead.
  const rotary: Run = { shape: [maxPos, dim / heads / 2] }
  return [
    { name: 'model.embed_tokens.weight', shape: [vocab, dim] },
    { name: 'input_layernorm.weight', shape: [dim], perLayer: true },
    { name: 'self_attn.q_proj.weight', shape: [dim, dim], perLayer: true },
    { name: 'self_attn.k_proj.weight', shape: [kvDim, dim], perLayer: true },
    { name: 'self_attn.v_proj.weight', shape: [kvDim, dim], perLayer: true },
    { name: 'self_attn.o_proj.weight', shape: [dim, dim], perLayer: true },
    { name: 'post_attention_layernorm.weight', shape: [dim], perLayer: true },
    { name: 'mlp.gate_proj.weight', shape: [hiddenDim, dim], perLayer: true },
    { name: 'mlp.down_proj.weight', shape: [dim, hiddenDim], perLayer: true },
    { name: 'mlp.up_proj.weight', shape: [hiddenDim, dim], perLayer: true },
    { name: 'model.norm.weight', shape: [dim] },
    rotary,
    rotary,
    ...(tied ? [] : [{ name: 'lm_head.weight', shape: [vocab, dim] }]),
  ]
}

/** Float32 numbers after the header; beyond 2⁵³ only roughly right, which no file length equals. */
function parameters(config: Llama2cConfig): number {
  return runs(config).reduce((sum, { shape, perLayer }) => sum + shape.reduce((n, d) => n * d, perLayer ? config.layers : 1), 0)
}

function place(config: Llama2cConfig, source: ByteSource, start: number): StoredTensor[] {
  const tensors: StoredTensor[] = []
  let offset = start
  for (const { name, shape, perLayer } of runs(config)) {
    const bytes = 4 * shape.reduce((n, d) => n * d, 1)
    for (let layer = 0; layer < (perLayer ? config.layers : 1); layer++) {
      const full = perLayer ? `model.layers.${layer}.${name}` : name
      if (full !== undefined) tensors.push({ name: full, type: 'F32', shape, source, offset, bytes })
      offset += bytes
    }
  }
  return tensors
}
