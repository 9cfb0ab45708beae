/** @file Jobs of segments and gradients: a streamed model against a resident one, gradients against forward passes, and the compilation of a gradient. */
import { load } from '../../dist/index.js'
import { alternate } from '../lib.mjs'
import { row } from '../models.mjs'

const context = 128
const loss = { kind: 'logit-difference', tokens: [100, 200] }

/** Files lie in the page cache after the first pass, which warms up. */
async function streamed({ model, options }) {
  const ids = row(model.architecture.stacks[0].vocab, context)
  const stream = await load(model.origin.id, { threads: options.threads, stream: true })
  const { weights, bytes } = stream.memory
  const rows = await alternate(
    [
      { name: 'actlens, resident', run: () => model.run({ ids }) },
      {
        name: 'actlens, streamed',
        run: () => stream.run({ ids }),
        checks: () => ({ weightsMB: Math.round(weights / 1e6), heldMB: Math.round(bytes / 1e6) }),
      },
    ],
    { ...options, rounds: Math.min(options.rounds, 10) },
  )
  await stream.dispose()
  return rows
}

async function gradients({ model, options }) {
  const ids = row(model.architecture.stacks[0].vocab, context)
  const middle = `resid_post.${model.architecture.stacks[0].layers >> 1}`
  let saved
  return alternate(
    [
      { name: 'forward', run: () => model.run({ ids }) },
      { name: `gradient at ${middle}`, run: () => model.gradient({ of: loss, at: middle }, { ids }) },
      { name: 'gradient at resid_post.*', run: () => model.gradient({ of: loss, at: 'resid_post.*' }, { ids }) },
      {
        name: 'the same, recomputed',
        run: async () => {
          saved = (await model.gradient({ of: loss, at: 'resid_post.*' }, { ids }, { saved: 'recompute' })).saved
        },
        checks: () => ({ keptMB: Math.round(saved.keptBytes / 1e5) / 10 }),
      },
    ],
    { ...options, rounds: Math.min(options.rounds, 10) },
  )
}

/** A gradient program from nothing: traced, differentiated, lowered, and all its sessions made; the run itself is short. */
async function compilation({ model, options }) {
  return alternate(
    [
      {
        name: 'first gradient at resid_post.*, 2 tokens, nothing compiled',
        run: async () => {
          await model.dispose()
          await model.gradient({ of: loss, at: 'resid_post.*' }, { ids: [1, 2] })
        },
      },
    ],
    { ...options, warmups: 1, rounds: 3 },
  )
}

/** The jobs, to be merged into those of index.mjs. */
export const segmentJobs = {
  STREAM: { title: 'forward pass of 128 tokens, weights mapped block by block', single: true, run: streamed },
  GRAD: { title: 'gradients of a logit difference, 128 tokens', single: true, run: gradients },
  COMPILE: { title: 'compilation of a gradient program', single: true, run: compilation },
}
