/** @file Which linear layers of a decoder read a norm, and which write the residual stream. */
import { ModelError } from '../../base/errors.ts'
import type { BlockSpec, DecoderSpec, DenseMlp, Linear, Mlp, Norm, Projection } from '../spec.ts'

/** A norm and all that reads its output. */
export interface NormReaders {
  /** The site of the norm's output. */
  readonly site: string
  readonly norm: Norm
  readonly readers: readonly Linear[]
}

export const projections = (p: Projection): Linear[] => (p.kind === 'split' ? [p.q, p.k, p.v] : [p.qkv])

/** Layers that read the input of a feed-forward network without routing. */
function inputsOfDense(mlp: DenseMlp): Linear[] {
  if (mlp.kind === 'plain') return [mlp.up]
  return 'gate' in mlp.gate ? [mlp.gate.gate, mlp.gate.up] : [mlp.gate.gateUp]
}

/** Layers that read the input of a feed-forward network. */
export function mlpInputs(mlp: Mlp): Linear[] {
  if (mlp.kind === 'none') return []
  if (mlp.kind !== 'experts') return inputsOfDense(mlp)
  const experts = Array.from({ length: mlp.count }, (_, i) => inputsOfDense(mlp.expert(i))).flat()
  const shared = mlp.shared ? [...inputsOfDense(mlp.shared.mlp), ...(mlp.shared.gate ? [mlp.shared.gate] : [])] : []
  return [mlp.router, ...experts, ...shared]
}

/** Layers that write the output of a feed-forward network. */
export function mlpOutputs(mlp: Mlp): Linear[] {
  if (mlp.kind === 'none') return []
  if (mlp.kind !== 'experts') return [mlp.down]
  return [...Array.from({ length: mlp.count }, (_, i) => mlp.expert(i).down), ...(mlp.shared ? [mlp.shared.mlp.down] : [])]
}

/** All blocks, in order. */
export const blocksOf = (spec: DecoderSpec): BlockSpec[] => Array.from({ length: spec.layers }, (_, l) => spec.block(l))

/** What reads the final states. */
export const finalReader = ({ narrow, head }: DecoderSpec): Linear => narrow?.out ?? head

/** Every norm that stands between the residual stream and linear layers. */
export function normReaders(spec: DecoderSpec): NormReaders[] {
  const found = blocksOf(spec).flatMap((b, l): NormReaders[] => {
    const attention = projections(b.attention.projection)
    const shared = b.residual === 'parallel' && !b.mlpNorm
    return [
      ...(b.attnNorm
        ? [{ site: `attn_in.${l}`, norm: b.attnNorm, readers: shared ? [...attention, ...mlpInputs(b.mlp)] : attention }]
        : []),
      ...(b.mlpNorm ? [{ site: `mlp_in.${l}`, norm: b.mlpNorm, readers: mlpInputs(b.mlp) }] : []),
    ]
  })
  return spec.finalNorm ? [...found, { site: 'final_norm', norm: spec.finalNorm, readers: [finalReader(spec)] }] : found
}

/** The embedding as a layer that writes the stream. */
export const embeddingLayer = ({ embedding, narrow }: DecoderSpec): Linear => narrow?.in ?? { weight: embedding, layout: 'in,out' }

/**
 * Every layer that writes the residual stream, where what they write enters it as it is.
 * @throws ModelError where a norm or a gain stands between.
 */
export function writers(spec: DecoderSpec): Linear[] {
  const between = (what: string): never => {
    throw new ModelError(
      `In the family '${spec.family}' ${what} stands between a matrix and the residual stream, so no change of the matrix does the same as one of the stream; use an edit ('project_out') instead.`,
    )
  }
  if (spec.embeddingNorm) between('a norm of the embeddings')
  const positions: Linear[] = spec.positions.kind === 'learned' ? [{ weight: spec.positions.weight, layout: 'in,out' }] : []
  const inside = blocksOf(spec).flatMap((b) => {
    if (b.attnPostNorm || b.mlpPostNorm) between('a norm after attention or MLP')
    if (b.attnSumNorm || b.mlpSumNorm) between('a norm of the stream itself')
    if (b.attnGain || b.mlpGain) between('a gain')
    return [b.attention.output, ...mlpOutputs(b.mlp)]
  })
  return [embeddingLayer(spec), ...positions, ...inside]
}
