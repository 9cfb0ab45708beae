/** @file The jobs, by the names of the protocol: each prepares its contenders on a model and yields the rows of its tables. */
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { add, zero } from '../../dist/index.js'
import { alternate, relativeError } from '../lib.mjs'
import { row } from '../models.mjs'
import { plainModel } from '../plain.mjs'
import { exploreJobs } from './explore.mjs'
import { jobs as patchingJobs } from './patching.mjs'
import { precisionJobs } from './precision.mjs'
import { segmentJobs } from './segments.mjs'
import { trainingJobs } from './training.mjs'

const context = 128
const prompt = 16
const newTokens = 64

const errorOf = (ours, reference) => () => ({ error: relativeError(ours(), reference()) })

/** A forward pass with taps against the plain graph with the same outputs. */
async function forward({ model, facts, file, options, batch }, { taps, plainTaps, plainLayers, logits = true }) {
  const ids = Array.from({ length: batch }, (_, b) => row(model.spec.vocab, context, b))
  const plain = await plainModel(facts, { file, threads: options.threads, taps: [] })
  const tapped =
    plainTaps || plainLayers
      ? await plainModel(facts, { file, threads: options.threads, taps: plainTaps ?? [], layers: plainLayers ?? model.spec.layers })
      : undefined
  const results = {}
  const keep = (key, run) => async () => {
    results[key] = await run()
  }
  const last = plainTaps?.at(-1)
  const rows = await alternate(
    [
      { name: 'plain ONNX Runtime, no tap', run: keep('theirs', () => plain.forward(ids)) },
      ...(tapped ? [{ name: 'plain ONNX Runtime, same outputs', run: keep('theirs', () => tapped.forward(ids)) }] : []),
      {
        name: 'actlens',
        run: keep('ours', () => model.run({ rows: ids }, { taps, logits })),
        checks: errorOf(
          () => (logits && !taps.length ? results.ours.logits.data : results.ours.taps[`resid_post.${last}`].data),
          () => (logits && !taps.length ? results.theirs.logits.data : results.theirs[`resid${last}`].data),
        ),
      },
    ],
    options,
  )
  await plain.release()
  await tapped?.release()
  return rows
}

const range = (n) => Array.from({ length: n }, (_, i) => i)

/** Greedy generation; rows are tokens a second, so that larger is better and the ratio is what is kept. */
async function generation({ model, facts, file, options }, variants) {
  const ids = row(model.spec.vocab, prompt)
  const plain = await plainModel(facts, { file, threads: options.threads, logits: 'last' })
  let reference
  const rate = async (generate) => {
    const t = performance.now()
    const tokens = await generate()
    return [tokens, tokens.length / ((performance.now() - t) / 1000)]
  }
  const contender = (name, edited, extra = {}) => {
    let tokens
    return {
      name,
      unit: 'tok/s',
      run: async () => {
        const [own, speed] = await rate(
          async () => (await edited.generate({ ids }, { maxNewTokens: newTokens, ignoreEos: true, ...extra }).result()).tokens,
        )
        tokens = own
        return speed
      },
      checks: () => ({ equal: `${tokens.filter((t, i) => t === reference[i]).length}/${newTokens}` }),
    }
  }
  const rows = await alternate(
    [
      {
        name: 'plain ONNX Runtime',
        unit: 'tok/s',
        run: async () => {
          const [tokens, speed] = await rate(() => plain.generate(ids, newTokens))
          reference = tokens
          return speed
        },
      },
      contender('actlens', model),
      ...variants(model).map(([name, edited, extra]) => contender(name, edited, extra)),
    ],
    { ...options, warmups: 1, rounds: Math.min(options.rounds, 10) },
  )
  await plain.release()
  return rows
}

const zeros = (model) => new Float32Array(model.spec.dModel)
const middle = (model) => (model.spec.layers >> 1) - 1

/** Steered variants, with vectors of zeros so that the text stays equal and only the cost shows. */
const steered = (model) => {
  const everywhere = () => add('resid_post.*', zeros(model), { scale: 1 })
  return [
    ['actlens, one layer', model.with(add(`resid_post.${middle(model)}`, zeros(model)))],
    ['actlens, all layers', model.with(everywhere())],
    ['actlens, three vectors on all', model.with(everywhere(), everywhere(), everywhere())],
  ]
}

const run = promisify(execFile)
const cli = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))

/** The jobs. */
export const jobs = {
  J1: { title: 'plain forward', run: (c) => forward(c, { taps: [] }) },
  J2: { title: 'one tap', run: (c) => forward(c, { taps: [`resid_post.${middle(c.model)}`], plainTaps: [middle(c.model)] }) },
  J3: { title: 'all residual taps', run: (c) => forward(c, { taps: ['resid_post.*'], plainTaps: range(c.model.spec.layers) }) },
  J5: {
    title: 'early stop after a third of the blocks',
    run: (c) => {
      const layers = Math.floor(c.model.spec.layers / 3)
      return forward(c, { taps: [`resid_post.${layers - 1}`], plainTaps: [layers - 1], plainLayers: layers, logits: false })
    },
  },
  J6: {
    title: 'taps in generation',
    single: true,
    run: (c) => generation(c, (m) => [['actlens, one tap', m, { taps: [`resid_post.${middle(m)}`] }]]),
  },
  J7: { title: 'steered generation', single: true, run: (c) => generation(c, steered) },
  EDIT: {
    title: 'edit at a site that was never edited before, to its first result',
    single: true,
    run: async ({ model, options }) => {
      const ids = row(model.spec.vocab, prompt)
      let layer = 0
      await model.run({ ids })
      return alternate(
        [
          { name: 'actlens, no edit', run: () => model.run({ ids }).then(() => undefined) },
          {
            name: 'actlens, zero at a new mlp_out',
            run: () =>
              model
                .with(zero(`mlp_out.${layer++ % model.spec.layers}`))
                .run({ ids })
                .then(() => undefined),
          },
        ],
        { ...options, warmups: 0, rounds: Math.min(model.spec.layers, 10) },
      )
    },
  },
  J19: {
    title: 'process start to first token',
    single: true,
    embeddedOnly: true,
    run: ({ options }) =>
      alternate(
        [
          {
            name: 'actlens generate embedded --max-new-tokens 1',
            run: () =>
              run(process.execPath, [cli, 'generate', 'embedded', '--prompt', 'Once upon a time', '--max-new-tokens', '1', '--quiet']).then(
                () => undefined,
              ),
          },
        ],
        {
          ...options,
          warmups: 1,
          rounds: 7,
        },
      ),
  },
  ...patchingJobs,
  ...exploreJobs,
  ...precisionJobs,
  ...segmentJobs,
  ...trainingJobs,
}
