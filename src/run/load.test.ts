/** What loading refuses, and what it says. */
import { describe, expect, it } from 'vitest'
import { fromBytes } from '../models/formats/bytes.ts'
import { encodeSafetensors, openSafetensors } from '../models/formats/index.ts'
import { createHfTokenizer } from '../models/text/hf-tokenizer.ts'
import { assemble } from './load.ts'
import { tinyLlama, tinyTensors } from './testing.ts'

/** A tiny model of 61 tokens, with a tokenizer that has some more. */
async function withTokenizer(beyond: readonly { readonly content: string; readonly special: boolean }[]) {
  const vocab = Object.fromEntries(Array.from({ length: 61 }, (_, i) => [`t${i}`, i]))
  const added_tokens = beyond.map((t, i) => ({ id: 61 + i, ...t }))
  const tokenizer = createHfTokenizer({
    tokenizer: { model: { type: 'WordLevel', vocab, unk_token: 't0' }, pre_tokenizer: { type: 'WhitespaceSplit' }, added_tokens },
  })
  const store = await openSafetensors(fromBytes(encodeSafetensors(tinyTensors(tinyLlama))))
  return assemble({ id: 'tiny', hash: async () => 'tiny', store, config: tinyLlama, tokenizer }, { threads: 1 })
}

describe('a tokenizer with ids beyond the vocabulary', () => {
  it('is taken where these are special tokens, and said', async () => {
    await using model = await withTokenizer([{ content: '<image>', special: true }])
    expect(model.origin.checks.join()).toMatch(/no row for 1 special tokens of the tokenizer \(<image>\)/)
    await expect(model.run('t1 <image>')).rejects.toThrow('holds the token 61')
    expect((await model.run('t1 t2', { logits: true })).tokens).toEqual([[1, 2]])
  })

  it('is refused where text could reach them', async () => {
    await expect(withTokenizer([{ content: 'word', special: false }])).rejects.toThrow('it belongs to another model')
    const both = [
      { content: '<image>', special: true },
      { content: 'word', special: false },
    ]
    await expect(withTokenizer(both)).rejects.toThrow('it belongs to another model')
  })
})
