/** Writes two stories at once, each to the end of its first paragraph, and says how sure the model was. */
import { load } from 'actlens'

const model = await load('embedded')
const prompts = ['One day, a cat', 'Lily and her mom']
const generation = model.generate(prompts, { temperature: 0.7, topP: 0.9, seed: 7, stop: ['\n'], logProbabilities: true })
const surprise = prompts.map(() => 0)
for await (const { row, logProbability } of generation.steps()) surprise[row] -= logProbability
for (const [row, { text, tokens, finishReason }] of (await generation.results()).entries())
  console.log(`${prompts[row]}${text}\n(${finishReason}; ${(surprise[row] / tokens.length).toFixed(2)} nats per token)\n`)
