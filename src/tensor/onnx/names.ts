/** @file Names in ONNX graphs: what a node reads, its sub-graphs included. */
import type { GraphProto, NodeProto } from './gen/onnx_pb.ts'

/** The sub-graphs that a node carries, such as the branches of an `If`. */
export function subgraphs(node: NodeProto): GraphProto[] {
  return node.attribute.flatMap((a) => [...(a.g ? [a.g] : []), ...a.graphs])
}

/** Names that a graph reads from around it. */
export function outerNames(graph: GraphProto): Set<string> {
  const own = new Set<string>([...graph.input, ...graph.initializer].map((v) => v.name))
  for (const s of graph.sparseInitializer) own.add(s.values?.name ?? '')
  for (const node of graph.node) for (const name of node.output) own.add(name)
  const read = new Set<string>()
  for (const node of graph.node) for (const name of readNames(node)) if (!own.has(name)) read.add(name)
  for (const output of graph.output) if (!own.has(output.name)) read.add(output.name)
  return read
}

/** Names that a node reads: its inputs, and what its sub-graphs take from around them. */
export function readNames(node: NodeProto): Set<string> {
  const names = new Set(node.input.filter((n) => n !== ''))
  for (const graph of subgraphs(node)) for (const name of outerNames(graph)) names.add(name)
  return names
}

/** Renames what a node reads, in its sub-graphs too. */
export function renameReads(node: NodeProto, from: string, to: string): void {
  node.input = node.input.map((n) => (n === from ? to : n))
  for (const graph of subgraphs(node)) {
    if (!outerNames(graph).has(from)) continue
    for (const inner of graph.node) renameReads(inner, from, to)
    for (const output of graph.output) if (output.name === from) output.name = to
  }
}
