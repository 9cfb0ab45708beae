/** @file The ONNX project's own node tests, run from a folder: plain runtime against ours, every float tensor tapped. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fromBinary } from '@bufbuild/protobuf'
import { messageOf } from '../../base/errors.ts'
import type { DType, TypedArray } from '../../base/types.ts'
import { dtypeOf, getRuntime, readOnnx } from '../../tensor/index.ts'
import { TensorProtoSchema } from '../../tensor/onnx/gen/onnx_pb.ts'
import type { OnnxValue } from './core.ts'
import { loadOnnx } from './load.ts'
import { isFloat } from './sites.ts'
import { arrayTypes, storedValue } from './stored.ts'

/** What became of one test. */
export interface NodeTestResult {
  readonly name: string
  /** `same`: our outputs are the runtime's. `not run`: the plain runtime refuses it, too. */
  readonly outcome: 'same' | 'not run' | 'different' | 'failed'
  readonly reason?: string
  /** Float tensors that were read beside the outputs. */
  readonly tapped: number
}

/** Runs one test folder. */
export async function runNodeTest(folder: string, name: string): Promise<NodeTestResult> {
  const path = join(folder, name, 'model.onnx')
  const bytes = readFileSync(path)
  const runtime = await getRuntime()
  const { graph } = readOnnx(bytes, name)
  const files = join(folder, name, 'test_data_set_0')
  const result = (outcome: NodeTestResult['outcome'], reason?: string, tapped = 0): NodeTestResult => ({
    name,
    outcome,
    ...(reason ? { reason } : {}),
    tapped,
  })
  for (const v of [...graph.input, ...graph.output]) {
    const type = v.type?.value
    const dtype = type?.case === 'tensorType' ? dtypeOf(type.value.elemType) : undefined
    // The runtime would end the process.
    if (type?.case === 'tensorType' && type.value.elemType !== 8 && (!dtype || !arrayTypes[dtype]))
      return result('not run', `${v.name} is of a type that the runtime does not exchange with JavaScript`)
  }
  let plain: Awaited<ReturnType<typeof runtime.compile>>
  try {
    plain = await runtime.compile(bytes, { device: 'cpu', threads: 1, memory: new Map() })
  } catch (error) {
    return result('not run', messageOf(error))
  }
  const feeds: Record<string, OnnxValue> = {}
  for (const [i, input] of graph.input.entries()) {
    if (!existsSync(join(files, `input_${i}.pb`))) continue
    if (input.type?.value.case !== 'tensorType')
      return result('not run', `${input.name} is no tensor, and only tensors can be fed from JavaScript`)
    const value = storedValue(fromBinary(TensorProtoSchema, readFileSync(join(files, `input_${i}.pb`))))
    if (!value) return result('not run', `${input.name} has a type that cannot be fed`)
    feeds[input.name] = value
  }
  const given = () =>
    Object.fromEntries(Object.entries(feeds).map(([n, v]) => [n, runtime.tensor(v.dtype as DType, v.shape, v.data as TypedArray)]))
  let expected: Awaited<ReturnType<typeof plain.run>>
  try {
    expected = await plain.run(given(), Object.fromEntries(graph.output.map((o) => [o.name, null])))
    for (const o of graph.output) void expected[o.name]?.data
  } catch (error) {
    return result('not run', messageOf(error))
  } finally {
    await plain.release()
  }
  try {
    const model = await loadOnnx(path, { id: name, hash: async () => name }, { threads: 1 })
    const taps = model.sites().filter((s) => s.tensor.kind === 'computed' && isFloat(s))
    const out = await model.run(feeds, { taps: taps.map((t) => t.site) })
    await model.dispose()
    for (const o of graph.output) {
      const ours = out.outputs[o.name]
      const theirs = expected[o.name]
      if (!same(ours, theirs)) return result('different', o.name, taps.length)
    }
    return result('same', undefined, taps.length)
  } catch (error) {
    return result('failed', messageOf(error))
  }
}

function same(ours: OnnxValue | undefined, theirs: { dims: readonly number[]; data: unknown } | undefined): boolean {
  if (!ours || !theirs || ours.shape.join() !== theirs.dims.join()) return false
  const raw = theirs.data as ArrayBufferView & ArrayLike<number>
  const halves = ours.dtype === 'float16' && raw.constructor.name === 'Float16Array'
  const expected = (halves ? new Uint16Array(raw.buffer, raw.byteOffset, raw.length) : raw) as ArrayLike<unknown>
  const floating = ours.dtype === 'float32' || ours.dtype === 'float64'
  for (let i = 0; i < expected.length; i++) {
    const [a, b] = [ours.data[i], expected[i]]
    // Taps keep the runtime from fusing nodes, which may round otherwise.
    if (!(Object.is(a, b) || a === b || (floating && Math.abs(Number(a) - Number(b)) <= 1e-6 + 1e-5 * Math.abs(Number(b))))) return false
  }
  return true
}

/** The tests of a folder. */
export const nodeTests = (folder: string) =>
  readdirSync(folder)
    .filter((name) => existsSync(join(folder, name, 'model.onnx')))
    .sort()
