/** Reads the attention of every head in layer 2: which token does the last one look at most? */
import { load } from 'actlens'

const model = await load('embedded')
const { taps, tokens } = await model.run('Tom gave his ball to Anna because', { taps: ['attn_probs.2'] })
const { shape, data } = taps['attn_probs.2'] // [batch, head, pos, key]
const [, heads, length] = shape
for (let head = 0; head < heads; head++) {
  const start = (head * length + length - 1) * length
  const row = [...data.subarray(start, start + length)]
  const key = row.indexOf(Math.max(...row))
  console.log(`head ${head}: ${JSON.stringify(model.tokenizer.decode([tokens[0][key]]))} ${row[key].toFixed(2)}`)
}
