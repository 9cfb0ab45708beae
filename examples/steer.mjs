/** Tells the same story with more and more sea in it. Moving the strength compiles nothing. */
import { load, meanDifference } from 'actlens'

const model = await load('embedded')
const sea = await meanDifference(model, {
  positive: ['the boat on the sea', 'a fish in the water', 'they swim in the sea'],
  negative: ['the car on the road', 'a bird in the sky', 'they walk in the park'],
  site: 'resid_post.3',
})
for (const scale of [-1, 0, 0.5, 1]) {
  const story = model.with(sea.edits({ scale })).generate('Once upon a time', { maxNewTokens: 40 })
  console.log(`${scale}: Once upon a time${(await story.result()).text}\n`)
}
