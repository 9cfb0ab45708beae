/** @file The strongest edges as a picture: layers upwards, what writes and what reads as points, lines as thick as their score. */
import type { EdgesAnswer } from '../../../../src/server/protocol.ts'

/** A point of the picture: a part of the model that writes or reads. */
export interface PathNode {
  readonly id: string
  readonly label: string
  /** Height in steps from the embeddings: attention of layer l at 2l + 1, its MLP at 2l + 2. */
  readonly level: number
  readonly x: number
}

/** A line of the picture. */
export interface PathEdge {
  readonly from: string
  readonly to: string
  readonly score: number
  /** By which input the reader takes it: `q`, `k`, `v`. */
  readonly by: string
}

/** The picture, in units: x from 0 to 1 within the row. */
export interface PathPicture {
  readonly nodes: readonly PathNode[]
  readonly edges: readonly PathEdge[]
  readonly levels: number
}

/** Where a part lies, told by its label: `embeddings`, `head 0.3`, `mlp 0`, `q 1.3`, `logits`. */
export function partOf(label: string, layers: number): { id: string; label: string; level: number; by: string } {
  const [, kind, layer, head] = /^(head|mlp|q|k|v) (\d+)(?:\.(\d+))?$/.exec(label) ?? []
  if (layer === undefined) return { id: label, label, level: label === 'embeddings' ? 0 : 2 * layers + 1, by: '' }
  const l = Number(layer)
  if (kind === 'mlp') return { id: `mlp ${l}`, label: `MLP ${l}`, level: 2 * l + 2, by: '' }
  // With shared keys and values several heads read by one; the picture says so by a point of its own.
  return { id: `head ${l}.${head}`, label: `${l}.${head}`, level: 2 * l + 1, by: kind === 'head' ? '' : (kind as string) }
}

/** Lays the strongest edges out. */
export function pathPicture({ senders, receivers, edges }: EdgesAnswer, layers: number, heads: number): PathPicture {
  const found = new Map<string, { id: string; label: string; level: number }>()
  const lines = edges.map(({ from, to, score }) => {
    const a = partOf(senders[from] as string, layers)
    const b = partOf(receivers[to] as string, layers)
    found.set(a.id, a)
    found.set(b.id, b)
    return { from: a.id, to: b.id, score, by: b.by }
  })
  // Heads stand in columns, MLPs in one of their own beside them, so that a line that goes past a part is not taken for its own.
  const column = (label: string) => {
    const head = /^\d+\.(\d+)$/.exec(label)?.[1]
    return head === undefined ? (label.startsWith('MLP') ? 0.93 : 0.42) : (0.8 * (Number(head) + 0.5)) / heads
  }
  const nodes = [...found.values()].map((node) => ({ ...node, x: column(node.label) }))
  return { nodes, edges: lines, levels: 2 * layers + 2 }
}
