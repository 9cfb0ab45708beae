/** Switches each layer's attention off in turn: how much does the next word's probability suffer? */
import { load, zero } from 'actlens'

const model = await load('embedded')
const prompt = 'Once upon a time, there was a little'
const word = model.tokenizer.encode(' girl').at(-1)

async function probability(of) {
  const { logits } = await of.run(prompt)
  const last = logits.at(0, -1)
  const top = Math.max(...last)
  return Math.exp(last[word] - top) / last.reduce((sum, x) => sum + Math.exp(x - top), 0)
}

console.log(`as it is         ${(await probability(model)).toFixed(3)}`)
for (let layer = 0; layer < model.spec.layers; layer++)
  console.log(`without attn_out.${layer} ${(await probability(model.with(zero(`attn_out.${layer}`)))).toFixed(3)}`)
