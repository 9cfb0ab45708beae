/** @file Programs: traced outputs in, numbers out. A program runs as one session, or as segments cut at the graph's marks. */
import { RuntimeFailure, ShapeError, UsageError } from '../base/errors.ts'
import { sha256 } from '../base/hash.ts'
import { type DType, type NDArray, sizeOf, type TypedArray } from '../base/types.ts'
import { Execution, type RunReport, type Segment } from './execution.ts'
import { Rewriter, tidy, topological } from './graph.ts'
import { lower } from './lower.ts'
import { type WeightRef, weightBytes } from './ops/leaf.ts'
import { splitWeights } from './pieces.ts'
import { getRuntime } from './runtime/index.ts'
import type { Device, Runtime, RuntimeTensor } from './runtime/runtime.ts'
import type { SessionCache, SessionOptions } from './session-cache.ts'
import { type Node, shown, type Tensor } from './tensor.ts'

/** How a program is compiled. */
export interface ProgramOptions extends SessionOptions {
  readonly cache: SessionCache
  /** A session for every segment instead of one for all, so that an edit recompiles one segment only. */
  readonly segmented?: boolean
  /** Neighbouring segments share a session until it holds this many bytes of weights; 0 (the default) keeps each apart. */
  readonly segmentBytes?: number
  /** Segments come and go: while one runs the next is made ready, and no product holds more than `pieceBytes` of a weight at once. Needs `segmented`. */
  readonly stream?: { readonly pieceBytes: number }
}

/** How a program is run. */
export interface RunSettings<Name extends string = string> {
  /** Arrays that outputs are written into, in place. */
  readonly into?: Readonly<Partial<Record<Name, NDArray>>>
  /** Outputs that are wanted; all by default. */
  readonly fetch?: readonly Name[]
  /** Stops between segments. */
  readonly signal?: AbortSignal | undefined
  /** Bytes of values between segments that may stay in memory; what goes beyond is kept on disk. No limit by default. */
  readonly keep?: number | undefined
  /** Told what was kept, at the end. */
  readonly onReport?: ((report: RunReport) => void) | undefined
}

const segmentFloating = -1

/** A compiled graph: named inputs to named outputs. */
export class Program<Name extends string = string> {
  private readonly outputs: ReadonlyMap<Name, Tensor>
  private readonly segments: readonly Segment[]
  private readonly options: ProgramOptions
  /** Inputs of the program: name → type. */
  readonly inputs: ReadonlyMap<string, Tensor>
  /** Bytes of the weights in all segments. */
  readonly weightBytes: number

  private constructor(
    outputs: ReadonlyMap<Name, Tensor>,
    segments: readonly Segment[],
    inputs: ReadonlyMap<string, Tensor>,
    options: ProgramOptions,
  ) {
    this.outputs = outputs
    this.segments = segments
    this.inputs = inputs
    this.options = options
    this.weightBytes = segments.reduce((sum, s) => sum + s.model.weightBytes, 0)
  }

  /** Lowers a graph; sessions are compiled when first run. */
  static async of<Name extends string>(outputs: Readonly<Record<Name, Tensor>>, options: ProgramOptions): Promise<Program<Name>> {
    const names = Object.keys(outputs) as Name[]
    const segmented = options.segmented ?? false
    const tidied = lowerable(
      names.map((n) => outputs[n]),
      segmented,
      false,
      options.device,
    )
    const tensors = options.stream ? splitWeights(tidied, options.stream.pieceBytes) : tidied
    const nodes = topological(tensors)
    const inputs = new Map<string, Tensor>()
    for (const node of nodes)
      if (node.op.name === 'input') {
        const name = node.attrs.name as string
        if (inputs.has(name)) throw new UsageError(`Two different inputs of the program are called '${name}'.`)
        inputs.set(name, node.outputs[0] as Tensor)
      }
    const segments: Segment[] = []
    for (const part of partition(nodes, tensors, options.segmentBytes ?? 0)) {
      const model = lower(part.nodes, part.fetched)
      const settings = [options.device, options.threads ?? 0, options.prepack ?? true, options.memoryPattern ?? true]
      const key = [await sha256(model.bytes as Uint8Array<ArrayBuffer>), ...settings].join('/')
      segments.push({ key, model, feeds: model.inputs })
    }
    return new Program(new Map(names.map((n, i) => [n, tensors[i] as Tensor])), segments, inputs, options)
  }

  /** Whether all sessions are compiled, so that a run starts at once. */
  get ready(): boolean {
    return this.segments.every((s) => this.options.cache.has(s.key))
  }

  /** Number of sessions. */
  get size(): number {
    return this.segments.length
  }

  /**
   * Runs the program.
   * @param feeds values of the inputs; symbols must agree between them.
   * @returns the outputs by name.
   */
  async run(feeds: Readonly<Record<string, NDArray>>, settings: RunSettings<Name> = {}): Promise<Record<Name, NDArray>> {
    const runtime = await getRuntime()
    const asked = settings.fetch ?? ([...this.outputs.keys()] as Name[])
    const results = new Map<Tensor, RuntimeTensor | null>(asked.map((name) => [this.output(name), null]))
    for (const [name, array] of Object.entries(settings.into ?? {}) as [Name, NDArray][])
      if (results.has(this.output(name))) results.set(this.output(name), held(array, runtime))
    const values = new Map<Tensor, RuntimeTensor>()
    const sizes = this.bind(feeds, runtime, values)
    const { cache, stream } = this.options
    const execution = new Execution(this.needed(new Set(results.keys())), sizes, runtime, {
      cache,
      session: this.options,
      ahead: stream !== undefined,
      keep: settings.keep,
      signal: settings.signal,
    })
    const made = await execution.run(values, results)
    settings.onReport?.(execution.report)
    const out = {} as Record<Name, NDArray>
    for (const name of asked) {
      const value = made.get(this.output(name))
      if (!value) throw new RuntimeFailure(`The program did not produce its output '${name}'.`)
      out[name] = { dtype: value.type as DType, shape: value.dims, data: value.data as TypedArray }
    }
    return out
  }

  private output(name: Name): Tensor {
    const t = this.outputs.get(name)
    if (!t) throw new UsageError(`The program has no output '${name}'.`)
    return t
  }

  /** The segments on which the wanted tensors depend; what passes between them is added to the wanted ones. */
  private needed(wanted: Set<Tensor>): Segment[] {
    const steps: Segment[] = []
    for (const segment of this.segments.toReversed()) {
      if (![...segment.model.outputs.keys()].some((t) => wanted.has(t))) continue
      for (const t of segment.feeds.values()) wanted.add(t)
      steps.unshift(segment)
    }
    return steps
  }

  /** The fed tensors; returns the lengths of the named axes. */
  private bind(feeds: Readonly<Record<string, NDArray>>, runtime: Runtime, values: Map<Tensor, RuntimeTensor>): Map<string, number> {
    const symbols = new Map<string, { size: number; from: string }>()
    for (const [name, t] of this.inputs) {
      const value = feeds[name]
      if (!value) throw new UsageError(`The program needs a value for its input '${name}' of shape ${shown(t.shape)}.`)
      const wrong = () =>
        new ShapeError(`The input '${name}' must be ${t.dtype} ${shown(t.shape)}, not ${value.dtype} [${value.shape.join(', ')}].`)
      if (value.dtype !== t.dtype || value.shape.length !== t.rank || value.data.length !== sizeOf(value.shape)) throw wrong()
      for (const [i, d] of t.shape.entries()) {
        const size = value.shape[i] as number
        if (typeof d === 'number') {
          if (d !== size) throw wrong()
          continue
        }
        const known = symbols.get(d)
        if (known && known.size !== size)
          throw new ShapeError(`The axis '${d}' is ${known.size} in the input '${known.from}' but ${size} in '${name}'.`)
        symbols.set(d, { size, from: name })
      }
      values.set(t, held(value, runtime))
    }
    return new Map([...symbols].map(([name, { size }]) => [name, size]))
  }
}

const tensors = new WeakMap<NDArray, RuntimeTensor>()

/** The runtime's view of an array; made once for arrays that are fed again and again, such as a cache. */
function held(array: NDArray, runtime: Runtime): RuntimeTensor {
  let t = tensors.get(array)
  if (t?.data !== array.data) {
    t = runtime.tensor(array.dtype, array.shape, array.data)
    tensors.set(array, t)
  }
  return t as RuntimeTensor
}

/** The segment of each node: the last cut that it depends on. */
function segmentsOf(nodes: readonly Node[]): Map<Node, number> {
  const segmentOf = new Map<Node, number>()
  for (const node of nodes) {
    let segment = node.op.name === 'cut' ? (node.attrs.index as number) : segmentFloating
    for (const x of node.inputs) if (x) segment = Math.max(segment, segmentOf.get(x.node) as number)
    segmentOf.set(node, segment)
  }
  // A part that only hands its input on, as the one before a start does, is no session of its own.
  const computing = new Set([...segmentOf].filter(([node]) => !handsOn.has(node.op.name)).map(([, segment]) => segment))
  for (const [node, segment] of segmentOf) if (!computing.has(segment)) segmentOf.set(node, segmentFloating)
  return segmentOf
}

/** Ops that give out what they are given. */
const handsOn: ReadonlySet<string> = new Set(['cut', 'identity'])

/** Merges neighbouring segments until each holds enough bytes of weights. Depends on weights alone, so that edits move no border. */
function mergeSegments(segmentOf: Map<Node, number>, bytes: number): void {
  const weights = new Map<number, number>()
  for (const [node, segment] of segmentOf) {
    if (segment === segmentFloating) continue
    let own = weights.get(segment) ?? 0
    for (const x of node.inputs) if (x?.node.op.name === 'weight') own += weightBytes(x.node.attrs.ref as WeightRef)
    weights.set(segment, own)
  }
  const groups = new Map<number, number>()
  let group = 0
  let held = 0
  for (const [segment, own] of [...weights].sort(([a], [b]) => a - b)) {
    if (held > 0 && held + own > bytes) {
      group++
      held = 0
    }
    groups.set(segment, group)
    held += own
  }
  for (const [node, segment] of segmentOf) if (segment !== segmentFloating) segmentOf.set(node, groups.get(segment) as number)
}

/** The same outputs in ops that can be lowered, tidied; `keepReshapes` as in {@link tidy}. */
export function lowerable(outputs: readonly Tensor[], segmented: boolean, keepReshapes = false, device?: Device): Tensor[] {
  const expander = new Rewriter({ expand: (node) => !node.op.lower || node.op.fuses?.(node, device) === false })
  return tidy(
    outputs.map((t) => expander.map(t)),
    segmented,
    keepReshapes,
  )
}

/** Bytes of weights that each segment of a graph reads in products, in order. */
export function segmentWeights(outputs: readonly Tensor[]): number[] {
  const tensors = lowerable(outputs, true)
  return partition(topological(tensors), tensors, 0).map((part) => lower(part.nodes, part.fetched).weightBytes)
}

/** Nodes grouped into segments, with the tensors that each must hand out. */
function partition(nodes: readonly Node[], outputs: readonly Tensor[], bytes: number): { nodes: Node[]; fetched: Tensor[] }[] {
  const segmentOf = segmentsOf(nodes)
  if (bytes > 0) mergeSegments(segmentOf, bytes)
  const isOutput = new Set(outputs)
  // What depends only on inputs and weights is cheap or needed at once: it is repeated in each segment that uses it.
  const floating = (node: Node) => segmentOf.get(node) === segmentFloating
  const indices = [...new Set([...segmentOf.values()].filter((s) => s !== segmentFloating))].sort((a, b) => a - b)
  if (indices.length === 0) return [{ nodes: [...nodes], fetched: [...new Set(outputs)] }]
  const wanted = new Map<number, Set<Tensor>>(indices.map((s) => [s, new Set()]))
  const first = indices[0] as number
  for (const t of outputs) (wanted.get(floating(t.node) ? first : (segmentOf.get(t.node) as number)) as Set<Tensor>).add(t)
  for (const node of nodes) {
    const own = segmentOf.get(node) as number
    for (const x of node.inputs) {
      if (!x || floating(x.node)) continue
      const from = segmentOf.get(x.node) as number
      if (from !== own) (wanted.get(from) as Set<Tensor>).add(x)
    }
  }
  return indices.map((s) => {
    const members = new Set(nodes.filter((n) => segmentOf.get(n) === s))
    const roots = [...members].flatMap((n) => n.inputs.filter((x): x is Tensor => !!x && floating(x.node)))
    if (s === first) roots.push(...outputs.filter((t) => isOutput.has(t) && floating(t.node)))
    const needed = new Set(topological(roots))
    return { nodes: nodes.filter((n) => members.has(n) || needed.has(n)), fetched: [...(wanted.get(s) as Set<Tensor>)] }
  })
}

/** Traces nothing, keeps nothing: runs a graph once. */
export async function evaluate<Name extends string>(
  outputs: Readonly<Record<Name, Tensor>>,
  feeds: Readonly<Record<string, NDArray>>,
  options: ProgramOptions,
): Promise<Record<Name, NDArray>> {
  return (await Program.of(outputs, options)).run(feeds)
}
