/** @file The contender: a Llama exported by hand for plain onnxruntime-node, with everything fused that the runtime can fuse. Shares no code with the engine but the ONNX codec. */
import { closeSync, existsSync, openSync, readSync, renameSync, writeSync } from 'node:fs'
import '../dist/tensor/runtime/no-telemetry.js'
import { create, toBinary } from '@bufbuild/protobuf'
import ort from 'onnxruntime-node'
import * as onnx from '../dist/tensor/onnx/gen/onnx_pb.js'

const attributeOf = (name, v) => (typeof v === 'number' ? { name, type: 2, i: BigInt(v) } : { name, type: 1, f: v.f })
const info = (name, elemType, dims) => ({
  name,
  type: {
    value: {
      case: 'tensorType',
      value: {
        elemType,
        shape: {
          dim: dims.map((d) => ({
            value: typeof d === 'number' ? { case: 'dimValue', value: BigInt(d) } : { case: 'dimParam', value: d },
          })),
        },
      },
    },
  },
})

/** Writes matrices as [in, out], the layout that MatMul wants, once. */
function transposedWeights(model, path) {
  const places = new Map()
  const parts = []
  let offset = 0
  for (const [name, ref] of model.weights) {
    places.set(name, { offset, length: ref.place.bytes })
    parts.push([name, ref, offset])
    offset += ref.place.bytes
  }
  if (!existsSync(path)) {
    const out = openSync(`${path}.part`, 'w')
    for (const [name, ref, at] of parts) {
      const fd = openSync(ref.place.path, 'r')
      const raw = Buffer.alloc(ref.place.bytes)
      readSync(fd, raw, 0, raw.length, ref.place.offset)
      closeSync(fd)
      const source = new Float32Array(raw.buffer, raw.byteOffset, raw.length / 4)
      let target = source
      if (ref.shape.length === 2 && name !== 'model.embed_tokens.weight') {
        const [rows, columns] = ref.shape
        target = new Float32Array(source.length)
        for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) target[c * rows + r] = source[r * columns + c]
      }
      writeSync(out, new Uint8Array(target.buffer, target.byteOffset, target.byteLength), 0, target.byteLength, at)
    }
    closeSync(out)
    renameSync(`${path}.part`, path)
  }
  return places
}

/** The exported model, as a session with a KV cache, and functions that run it. */
export async function plainModel(model, { file, threads, logits = 'all', taps = [], layers = model.spec.layers }) {
  const s = model.spec
  const places = transposedWeights(model, file)
  const nodes = []
  const initializers = []
  const named = new Set()
  let counter = 0
  const op = (opType, input, attrs = {}, outputs = 1, domain = '') => {
    const output = Array.isArray(outputs) ? outputs : Array.from({ length: outputs }, () => `n${counter++}`)
    nodes.push({ opType, domain, input, output, attribute: Object.entries(attrs).map(([k, v]) => attributeOf(k, v)) })
    return output.length === 1 ? output[0] : output
  }
  const ms = 'com.microsoft'
  const weight = (name) => {
    if (named.has(name)) return name
    named.add(name)
    const ref = model.weights.get(name)
    const shape = ref.shape.length === 2 && name !== 'model.embed_tokens.weight' ? ref.shape.toReversed() : ref.shape
    const { offset, length } = places.get(name)
    initializers.push({
      name,
      dims: shape.map(BigInt),
      dataType: 1,
      dataLocation: 1,
      externalData: [
        { key: 'location', value: file.slice(1) },
        { key: 'offset', value: String(offset) },
        { key: 'length', value: String(length) },
      ],
    })
    return name
  }
  const inputs = [
    info('ids', 7, ['b', 's']),
    info('seqlens', 6, ['b']),
    info('total', 6, []),
    info('cos', 1, ['m', s.headDim / 2]),
    info('sin', 1, ['m', s.headDim / 2]),
  ]
  const outputs = []
  const eps = { epsilon: { f: 1e-5 } }
  let x = op('Gather', [weight('model.embed_tokens.weight'), 'ids'])
  let h = op('SimplifiedLayerNormalization', [x, weight('model.layers.0.input_layernorm.weight')], { axis: -1, ...eps, stash_type: 1 })
  for (let l = 0; l < layers; l++) {
    const at = (n) => weight(`model.layers.${l}.${n}.weight`)
    const mm = (v, n) => op('MatMul', [v, at(n)])
    inputs.push(info(`pk${l}`, 1, ['b', s.kvHeads, 'cap', s.headDim]), info(`pv${l}`, 1, ['b', s.kvHeads, 'cap', s.headDim]))
    const z = op(
      'GroupQueryAttention',
      [
        mm(h, 'self_attn.q_proj'),
        mm(h, 'self_attn.k_proj'),
        mm(h, 'self_attn.v_proj'),
        `pk${l}`,
        `pv${l}`,
        'seqlens',
        'total',
        'cos',
        'sin',
      ],
      { num_heads: s.heads, kv_num_heads: s.kvHeads, do_rotary: 1, rotary_interleaved: model.interleaved ? 1 : 0 },
      [`z${l}`, `nk${l}`, `nv${l}`],
      ms,
    )[0]
    outputs.push(info(`nk${l}`, 1, ['b', s.kvHeads, 'cap', s.headDim]), info(`nv${l}`, 1, ['b', s.kvHeads, 'cap', s.headDim]))
    const [h2, , , mid] = op('SkipSimplifiedLayerNormalization', [x, mm(z, 'self_attn.o_proj'), at('post_attention_layernorm')], eps, 4, ms)
    const act = op('Mul', [op('QuickGelu', [mm(h2, 'mlp.gate_proj')], { alpha: { f: 1 } }, 1, ms), mm(h2, 'mlp.up_proj')])
    const next = l + 1 < s.layers ? `model.layers.${l + 1}.input_layernorm.weight` : 'model.norm.weight'
    const sum = `resid${l}`
    const [normed] = op(
      'SkipSimplifiedLayerNormalization',
      [mid, mm(act, 'mlp.down_proj'), weight(next)],
      eps,
      [`h${l}`, `a${l}`, `b${l}`, sum],
      ms,
    )
    h = normed
    x = sum
    if (taps.includes(l)) outputs.push(info(sum, 1, ['b', 's', s.dModel]))
  }
  if (layers === s.layers) {
    if (logits === 'last') {
      inputs.push(info('last', 7, ['b', 1]))
      h = op('GatherND', [h, 'last'], { batch_dims: 1 })
    }
    const head = model.tied
      ? op('FusedMatMul', [h, 'model.embed_tokens.weight'], { transB: 1, alpha: { f: 1 } }, ['logits'], ms)
      : op('MatMul', [h, weight('lm_head.weight')], {}, ['logits'])
    outputs.push(info(head, 1, logits === 'last' ? ['b', s.vocab] : ['b', 's', s.vocab]))
  }
  const bytes = toBinary(
    onnx.ModelProtoSchema,
    create(onnx.ModelProtoSchema, {
      irVersion: 10n,
      opsetImport: [
        { domain: '', version: 21n },
        { domain: ms, version: 1n },
      ],
      graph: { name: 'plain', node: nodes, initializer: initializers, input: inputs, output: outputs },
    }),
  )
  const session = await ort.InferenceSession.create(bytes, {
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    graphOptimizationLevel: 'all',
    extra: { session: { model_external_initializers_file_folder_path: '/', force_spinning_stop: '1' } },
  })
  const table = (f) => {
    const half = s.headDim / 2
    return new ort.Tensor(
      'float32',
      Float32Array.from({ length: model.context * half }, (_, i) =>
        f(Math.floor(i / half) / model.theta ** ((2 * (i % half)) / s.headDim)),
      ),
      [model.context, half],
    )
  }
  const [cos, sin] = [table(Math.cos), table(Math.sin)]
  const cacheOf = (batch, capacity) => {
    const feeds = {}
    const fetches = {}
    for (let l = 0; l < layers; l++)
      for (const c of ['k', 'v']) {
        const t = new ort.Tensor('float32', new Float32Array(batch * s.kvHeads * capacity * s.headDim), [
          batch,
          s.kvHeads,
          capacity,
          s.headDim,
        ])
        feeds[`p${c}${l}`] = t
        fetches[`n${c}${l}`] = t
      }
    return { feeds, fetches }
  }
  const step = (rows, past, cache, fetch) => {
    const [b, n] = [rows.length, rows[0].length]
    const feeds = {
      ids: new ort.Tensor('int64', BigInt64Array.from(rows.flat().map(BigInt)), [b, n]),
      seqlens: new ort.Tensor('int32', new Int32Array(b).fill(past + n - 1), [b]),
      total: new ort.Tensor('int32', Int32Array.of(past + n), []),
      cos,
      sin,
      ...(logits === 'last' && layers === s.layers
        ? {
            last: new ort.Tensor(
              'int64',
              BigInt64Array.from(rows, () => BigInt(n - 1)),
              [b, 1],
            ),
          }
        : {}),
      ...cache.feeds,
    }
    return session.run(feeds, { ...cache.fetches, ...fetch })
  }
  const fetch = { ...(layers === s.layers ? { logits: null } : {}), ...Object.fromEntries(taps.map((l) => [`resid${l}`, null])) }
  return {
    forward: (rows) => step(rows, 0, cacheOf(rows.length, rows[0].length), fetch),
    async generate(ids, count) {
      const cache = cacheOf(1, ids.length + count)
      const tokens = []
      let fresh = ids
      let past = 0
      for (let i = 0; i < count; i++) {
        const out = await step([fresh], past, cache, { logits: null })
        const row = out.logits.data
        let best = 0
        for (let k = 1; k < row.length; k++) if (row[k] > row[best]) best = k
        past += fresh.length
        tokens.push(best)
        fresh = [best]
      }
      return tokens
    },
    release: () => session.release(),
  }
}
