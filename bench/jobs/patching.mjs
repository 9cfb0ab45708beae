/** @file J9 and J10: an activation-patching sweep and attribution patching, against one forward pass and patches one by one. */
import { attribute, patch } from '../../dist/explore/index.js'
import { replace } from '../../dist/index.js'
import { alternate, relativeError } from '../lib.mjs'
import { row } from '../models.mjs'

/** The prompts of the protocol: one token of 16 (or more) changed, the score a difference of two logits at the end. */
function prompts(model, length) {
  const clean = row(model.spec.vocab, length)
  const corrupt = clean.with(5, row(model.spec.vocab, length, 1)[5])
  return {
    clean: { ids: clean },
    corrupt: { ids: corrupt },
    metric: { kind: 'logit-difference', answer: clean[3], wrong: clean[9] },
    sites: 'resid_pre.*',
  }
}

/** The same table from one edited run for each cell: `replace` with a new position compiles nothing. */
async function oneByOne(model, { clean, corrupt, metric }) {
  const sites = model.resolve('resid_pre.*').map((s) => s.site)
  const source = await model.run(clean, { taps: sites, logits: false })
  const grid = []
  for (const site of sites)
    for (let p = 0; p < corrupt.ids.length; p++) {
      const { logits } = await model.with(replace(site, source.taps[site], { where: { positions: p } })).run(corrupt)
      const last = logits.at(0, -1)
      grid.push(last[metric.answer] - last[metric.wrong])
    }
  return grid
}

/** The jobs. */
export const jobs = {
  J9: {
    title: 'activation patching sweep, layers × 16 positions',
    single: true,
    run: async ({ model, options }) => {
      const request = prompts(model, 16)
      let swept
      let reference
      return alternate(
        [
          { name: 'actlens, one forward', run: () => model.run(request.corrupt).then(() => undefined) },
          {
            name: 'actlens, patches one by one',
            run: async () => {
              reference = await oneByOne(model, request)
            },
          },
          {
            name: 'actlens patch, stacked on the batch',
            run: async () => {
              swept = await patch(model, request)
            },
            checks: () => ({ error: relativeError(swept.tables['resid_pre.*'].data, reference) }),
          },
        ],
        { ...options, warmups: 1, rounds: Math.min(options.rounds ?? 20, 5) },
      )
    },
  },
  J10: {
    title: 'attribution patching at all residual sites, in forwards of the same text',
    single: true,
    run: async ({ model, options }) => {
      const rows = []
      for (const length of [16, 128]) {
        const request = prompts(model, length)
        const own = await alternate(
          [
            { name: `actlens, one forward of ${length}`, run: () => model.run(request.corrupt).then(() => undefined) },
            { name: `actlens attribute, ${length} tokens`, run: () => attribute(model, request).then(() => undefined) },
          ],
          { ...options, rounds: Math.min(options.rounds ?? 20, 10) },
        )
        rows.push(...own)
      }
      return rows
    },
  },
}
