/** @file Jobs of training: a step of a language model of stories15M's shape, and one of a TopK autoencoder. PyTorch's side is shared/bench/gradient_torch.py and sae_train.py. */
import {
  adam,
  adamW,
  crossEntropy,
  embeddingTable,
  encode,
  mlp,
  ParameterSet,
  rmsNormed,
  selfAttention,
  sparseDecode,
  TrainingStep,
  tiedLogits,
} from '../../dist/nn/index.js'
import { add, div, gather, mean, mul, relu, sqrt, sub, sum, topK } from '../../dist/tensor/index.js'
import { alternate } from '../lib.mjs'

/** A repeatable stream of numbers in [−½, ½). */
function stream(seed) {
  let state = seed
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32 - 0.5
  }
}

const story = { vocab: 32000, width: 288, layers: 6, heads: 6, hidden: 768, batch: 8, length: 128 }

/** The Llama of stories15M: RMS norms, rotary attention, gated MLP, tied embedding, no biases. */
function storyModel({ ids, targets }, scope) {
  const { vocab, width, layers, heads, hidden } = story
  const plain = { bias: false }
  const table = embeddingTable(scope.in('embed'), vocab, width)
  let x = gather(table, ids)
  for (let i = 0; i < layers; i++) {
    const at = scope.in(`block${i}`)
    x = add(x, selfAttention(at.in('attention'), rmsNormed(at.in('norm1'), x), { heads, rotaryBase: 10000, ...plain }))
    x = add(x, mlp(at.in('mlp'), rmsNormed(at.in('norm2'), x), { hidden, gated: true, activation: 'silu', ...plain }))
  }
  return crossEntropy(tiedLogits(rmsNormed(scope.in('norm'), x), table), targets)
}

/** One contender: a compiled step on fixed batches; its checks are the first losses and the peak of memory. */
async function stepping(name, options, batchOf, rate, runtime) {
  const step = await TrainingStep.of({ parameters: new ParameterSet(), ...options }, runtime)
  const losses = []
  return {
    step,
    contender: {
      name,
      run: async () => {
        const { loss } = await step.update(batchOf(losses.length), { rate, step: losses.length + 1 })
        losses.push(loss)
      },
      checks: () => ({
        'first losses': losses
          .slice(0, 4)
          .map((v) => v.toFixed(4))
          .join(' '),
        'last loss': losses.at(-1),
      }),
    },
  }
}

async function measured(made, options) {
  try {
    return await alternate([made.contender], { warmups: 2, ...options })
  } finally {
    await made.step.dispose()
  }
}

async function storyStep({ options }) {
  const { vocab, batch, length } = story
  const next = stream(1)
  const tokens = Array.from({ length: batch * (length + 1) }, () => BigInt(Math.floor((next() + 0.5) * vocab)))
  const block = (shift) => ({
    dtype: 'int64',
    shape: [batch, length],
    data: BigInt64Array.from({ length: batch * length }, (_, i) => tokens[Math.floor(i / length) * (length + 1) + (i % length) + shift]),
  })
  const [ids, targets] = [block(0), block(1)]
  const type = { dtype: 'int64', shape: [batch, length] }
  const training = { model: storyModel, inputs: { ids: type, targets: type }, optimizer: adamW({ weightDecay: 0.01 }) }
  const made = await stepping('actlens, forward + backward + AdamW', training, () => ({ ids, targets }), 1e-4, { threads: options.threads })
  return measured(made, options)
}

const sae = { inside: 768, features: 4096, k: 32, batch: 1024, kinds: 4096, active: 24 }

/** Rows that are sums of a few directions out of many, as in the peers' data. */
function plantedRows(next, directions, count) {
  const { inside, kinds, active } = sae
  const rows = new Float32Array(count * inside)
  for (let r = 0; r < count; r++)
    for (let a = 0; a < active; a++) {
      const [f, amount] = [Math.floor((next() + 0.5) * kinds), 1 + next()]
      for (let i = 0; i < inside; i++) rows[r * inside + i] += amount * directions[f * inside + i]
    }
  return rows
}

function unitRows(next, count, width) {
  const data = Float32Array.from({ length: count * width }, next)
  for (let r = 0; r < count; r++) {
    const row = data.subarray(r * width, (r + 1) * width)
    const size = Math.hypot(...row)
    for (let i = 0; i < width; i++) row[i] /= size
  }
  return data
}

/** Squared error of a TopK autoencoder that reads only the active rows of its decoder. */
function saeModel({ x }, scope, start) {
  const { inside, features, k } = sae
  const decoder = scope.parameter('W_dec', [features, inside], () => start.slice())
  const encoder = scope.parameter('W_enc', [inside, features], () =>
    Float32Array.from({ length: inside * features }, (_, i) => start[(i % features) * inside + Math.floor(i / features)]),
  )
  const [bEnc, bDec] = [
    ['b_enc', features],
    ['b_dec', inside],
  ].map(([n, size]) => scope.parameter(n, [size], () => new Float32Array(size)))
  const { values, indices } = topK(encode(x, { encoder, encoderBias: bEnc, decoderBias: bDec }), k)
  const rebuilt = add(sparseDecode(relu(values), indices, decoder), bDec)
  const error = sub(x, rebuilt)
  return mean(sum(mul(error, error), [-1]))
}

/** Decoder rows stay at length one: their gradients lose what would change it, and each step ends with it. */
const decoderHook = {
  rowwise: true,
  gradient: (g, w) => sub(g, mul(sum(mul(g, w), [-1], true), w)),
  parameter: (w) => div(w, sqrt(sum(mul(w, w), [-1], true))),
}

async function saeStep({ options }) {
  const { inside, features, batch, kinds } = sae
  const next = stream(2)
  const directions = unitRows(next, kinds, inside)
  const batches = Array.from({ length: 4 }, () => ({
    x: { dtype: 'float32', shape: [batch, inside], data: plantedRows(next, directions, batch) },
  }))
  const start = unitRows(next, features, inside)
  const training = {
    model: (inputs, scope) => saeModel(inputs, scope, start),
    inputs: { x: { dtype: 'float32', shape: [batch, inside] } },
    optimizer: adam(),
    clip: { norm: 1 },
    hooks: { W_dec: decoderHook },
  }
  const made = await stepping('actlens, gathered decoder', training, (i) => batches[i % batches.length], 4e-4, { threads: options.threads })
  return measured(made, options)
}

/** The jobs, to be merged into those of index.mjs. */
export const trainingJobs = {
  TRAIN: { title: 'training step, batch 8 × 128', single: true, embeddedOnly: true, run: storyStep },
  J14: { title: 'training step of a TopK autoencoder, 768 → 4,096, k 32, batch 1,024', single: true, embeddedOnly: true, run: saeStep },
}
