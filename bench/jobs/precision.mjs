/** @file Jobs of precision: decode and prefill with weights in f32, 8 and 4 bits. A GGUF file (`--model PATH`) is used in its own blocks. */
import { alternate } from '../lib.mjs'
import { row } from '../models.mjs'

/** f16 is not among them: on the CPU it saves memory only. */
const precisions = ['f32', 'q8', 'q4']
const prompt = 16
const newTokens = 16

/** One contender for each precision; the first is the model of the job itself. */
async function compared({ model, load, options }, contender) {
  const others = []
  for (const precision of precisions.slice(1)) others.push(await load(precision))
  try {
    const rows = [model, ...others].map((m) => ({ name: `actlens, ${m.precision}`, ...contender(m) }))
    return await alternate(rows, { ...options, warmups: 1 })
  } finally {
    for (const m of others) await m.dispose()
  }
}

export const precisionJobs = {
  Q1: {
    title: `decode of ${newTokens} tokens, by precision`,
    single: true,
    run: (c) =>
      compared(c, (m) => ({
        unit: 'tok/s',
        run: async () => {
          let first
          for await (const _ of m.generate({ ids: row(m.spec.vocab, prompt) }, { maxNewTokens: newTokens, ignoreEos: true }).steps())
            first ??= performance.now()
          return (newTokens - 1) / ((performance.now() - first) / 1000)
        },
      })),
  },
  Q2: {
    title: 'forward pass of 128 tokens, by precision',
    single: true,
    run: (c) => compared(c, (m) => ({ run: () => m.run({ ids: row(m.spec.vocab, 128) }).then(() => undefined) })),
  },
}
