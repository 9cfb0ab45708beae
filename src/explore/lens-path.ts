/** @file The path lens: what each write to the residual stream says by its direct path to the logits. */
import { UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import type { ModelCore } from '../run/core.ts'
import type { Model, ModelInput } from '../run/index.ts'
import { add, matmul, mean, mul, sub, type Tensor, topK } from '../tensor/index.ts'
import { gainOf, matrixOf, normalised, partsOf, weightOf } from './logit-attribution.ts'
import { editedModel, rowFeeds, stackableRows } from './patch-graph.ts'

/** Options of {@link pathLens}. */
export interface PathLensOptions {
  /** Paths of the embeddings, attention layers and MLPs (default), or of each attention head. */
  readonly by?: 'components' | 'heads'
  /** Tokens that are kept for each place, 10 by default. */
  readonly top?: number
  /** Keep all logits. */
  readonly logits?: boolean
}

/** What the paths say. Logits are less their mean over the vocabulary, which softmax does not see. */
export interface PathLensResult {
  readonly kind: 'path'
  /** `embed`, `0_attn_out`, `0_mlp_out` …, or `L0H0` …: labels of the axis `path`. */
  readonly paths: readonly string[]
  readonly tokens: readonly number[]
  /** Tokens that the path says most for, int64 [path, pos, top], and what it adds to their logits. */
  readonly topIds: NDArray<BigInt64Array>
  readonly topLogits: NDArray<Float32Array>
  /** Tokens that it says most against, the same. */
  readonly bottomIds: NDArray<BigInt64Array>
  readonly bottomLogits: NDArray<Float32Array>
  /** [path, pos, d_vocab] */
  readonly logits?: NDArray<Float32Array>
  /** What the biases of norm and unembedding say at every place, [d_vocab]; with `logits`. */
  readonly bias?: NDArray<Float32Array>
}

/**
 * The path lens: the direct paths of the path expansion (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"), each
 * read by itself. Every write to the last residual stream goes through the final norm, frozen at the divisor that it has in the run, and
 * the unembedding. Where the logit lens reads the sum so far with statistics of its own, here the components and the bias add up to the
 * model's logits (before a soft-cap).
 */
export async function pathLens(model: Model, text: ModelInput, options: PathLensOptions = {}): Promise<PathLensResult> {
  const { by = 'components', top = 10, logits = false } = options
  if (!Number.isInteger(top) || top < 1 || top > model.spec.vocab)
    throw new UsageError(`The number of top tokens must be between 1 and ${model.spec.vocab}, not ${top}.`)
  const rows = stackableRows(model, text, 'The text')
  if (rows.length !== 1) throw new UsageError(`A lens reads one text at a time, not ${rows.length}; call it for each.`)
  const edited = editedModel(model)
  const program = await edited.core.compiled(JSON.stringify(['path lens', edited.structure, by, top, logits]), () => {
    const { parts, scale } = partsOf(edited, by)
    const outputs: Record<string, Tensor> = {}
    for (const [label, part] of parts) {
      const said = directLogits(edited.core, normalised(part, 'frozen', model.spec.finalNorm, scale))
      const [most, least] = [topK(said, top), topK(mul(said, -1), top)]
      Object.assign(outputs, {
        [`ids:${label}`]: most.indices,
        [`values:${label}`]: most.values,
        [`low ids:${label}`]: least.indices,
        [`low values:${label}`]: mul(least.values, -1),
        ...(logits ? { [`logits:${label}`]: said } : {}),
      })
    }
    return logits ? { ...outputs, bias: biasLogits(edited.core, [...parts.values()][0] as Tensor) } : outputs
  })
  const out = await program.run(rowFeeds(edited, rows))
  const labels = Object.keys(out)
    .filter((n) => n.startsWith('ids:'))
    .map((n) => n.slice('ids:'.length))
  const heads = by === 'heads' ? model.spec.heads : 1
  const joined = <T extends Float32Array | BigInt64Array>(name: string) =>
    stack<T>(
      labels.map((l) => out[`${name}:${l}`] as NDArray<T>),
      heads,
    )
  return {
    kind: 'path',
    paths: by === 'heads' ? labels.flatMap((l) => Array.from({ length: heads }, (_, h) => `${l}H${h}`)) : labels,
    tokens: rows[0] as readonly number[],
    topIds: joined<BigInt64Array>('ids'),
    topLogits: joined<Float32Array>('values'),
    bottomIds: joined<BigInt64Array>('low ids'),
    bottomLogits: joined<Float32Array>('low values'),
    ...(logits ? { logits: joined<Float32Array>('logits'), bias: out.bias as NDArray<Float32Array> } : {}),
  }
}

/** What the unembedding, with the norm's gain folded in, makes of a normalised part [… , d_model], less its mean: [… , d_vocab]. */
function directLogits(core: ModelCore, part: Tensor): Tensor {
  const { finalNorm } = core.spec
  return centred(unembedded(core, finalNorm?.weight ? mul(part, gainOf(core, finalNorm)) : part))
}

function unembedded(core: ModelCore, x: Tensor): Tensor {
  const { head, narrow, logitScale = 1 } = core.spec
  const through = (t: Tensor, l: typeof head) => matmul(t, matrixOf(core, l), { transB: l.layout === 'out,in' })
  return mul(through(narrow ? through(x, narrow.out) : x, head), logitScale)
}

/** What the biases say, [d_vocab]. `like` is any part, for its width. */
function biasLogits(core: ModelCore, like: Tensor): Tensor {
  const { head, narrow, finalNorm, logitScale = 1 } = core.spec
  const width = core.spec.dModel
  const none = mul(
    mean(
      like,
      like.shape.slice(0, -1).map((_, i) => i),
    ),
    0,
  ).reshape([1, width])
  let said = unembedded(core, finalNorm?.bias ? add(none, weightOf(core, finalNorm.bias)) : none)
  if (narrow?.out.bias) {
    const inner = weightOf(core, narrow.out.bias).reshape([1, narrow.width])
    said = add(said, mul(matmul(inner, matrixOf(core, head), { transB: head.layout === 'out,in' }), logitScale))
  }
  if (head.bias) said = add(said, mul(weightOf(core, head.bias), logitScale))
  return centred(said).reshape([core.spec.vocab])
}

const centred = (logits: Tensor) => sub(logits, mean(logits, [-1], true))

/** Arrays [1, (head,) …] of several parts as one [path, …]. */
function stack<T extends Float32Array | BigInt64Array>(parts: readonly NDArray<T>[], heads: number): NDArray<T> {
  const first = parts[0] as NDArray<T>
  const data = new (first.data.constructor as new (n: number) => T)(first.data.length * parts.length)
  for (const [i, p] of parts.entries()) data.set(p.data as never, i * first.data.length)
  return { dtype: first.dtype, shape: [parts.length * heads, ...first.shape.slice(heads === 1 && first.shape.length === 3 ? 1 : 2)], data }
}
