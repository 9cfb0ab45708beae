/** Measures a vector at every layer, saves it, loads it again and steers with it: node examples/save-vector.mjs [FILE] */
import { load, loadVector, meanDifference, saveVector, steer } from 'actlens'

const path = process.argv[2] ?? 'gloom.safetensors'
const model = await load('embedded')
const gloom = await meanDifference(model, {
  positive: ['They were very sad', 'He cried and cried', 'She was scared of the dark'],
  negative: ['They were very happy', 'He laughed and laughed', 'She was glad of the light'],
  site: 'resid_post.*',
  position: 'mean',
})
await saveVector(path, gloom)
console.log(`${path}: ${gloom.sites.length} directions of ${gloom.record.model.id}`)
const steered = await steer(model, await loadVector(path), { scale: 2, sites: ['resid_post.3'] })
console.log((await steered.generate('Once upon a time', { maxNewTokens: 60 }).result()).text)
