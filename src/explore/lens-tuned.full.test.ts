/** The tuned lens on the embedded model: nearer to it than the logit lens at every layer, on stories that it has not seen. */
import { expect, it } from 'vitest'
import { load } from '../run/index.ts'
import { lensDivergence, trainTunedLens } from './index.ts'

it('lies below the logit lens on held-out text', { timeout: 900_000 }, async () => {
  await using model = await load('embedded', { threads: 2 })
  // The model's own stories are text of the kind that it was trained on.
  const prompts = ['Once upon a time', 'One day, a little girl', 'Tom had a', 'The dog']
  const rows = prompts.flatMap((p) => new Array<string>(6).fill(p))
  const written = await model.generate(rows, { maxNewTokens: 140, temperature: 1, seed: 0 }).results()
  const stories = written.map((w, i) => [...(model.tokens(rows[i] as string).rows[0] as number[]), ...w.tokens])
  const [learned, held] = [stories.filter((_, i) => i % 6 > 0), stories.filter((_, i) => i % 6 === 0)]
  const { lens } = await trainTunedLens(model, learned, { steps: 60, length: 64, batch: 2, rate: 2e-3 })
  const sites = Object.keys(lens.maps)
  const [tuned, logit] = [
    await lensDivergence(model, { rows: held }, { sites, maps: lens }),
    await lensDivergence(model, { rows: held }, { sites }),
  ]
  console.info(Object.fromEntries(sites.map((s) => [s, [logit[s]?.toFixed(2), tuned[s]?.toFixed(2)]])))
  for (const site of sites) expect(tuned[site], site).toBeLessThan(logit[site] as number)
})
