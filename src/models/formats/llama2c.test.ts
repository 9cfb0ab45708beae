import { describe, expect, it } from 'vitest'
import { fromBytes, openFile } from './bytes.ts'
import { openLlama2c } from './llama2c.ts'
import { bytesOfPieces, expectRefusal, hasShared, little, rawBytes, shared } from './testing.ts'

type Header = [dim: number, hidden: number, layers: number, heads: number, kvHeads: number, vocab: number, maxPos: number]

/** A file whose weights count up from 0. */
function model([dim, hidden, layers, heads, kvHeads, vocab, maxPos]: Header): Uint8Array<ArrayBuffer> {
  const kv = (dim / heads) * kvHeads
  const perLayer = 2 * dim + 2 * dim * dim + 2 * kv * dim + 3 * dim * hidden
  const count = Math.abs(vocab) * dim * (vocab < 0 ? 2 : 1) + layers * perLayer + dim + maxPos * (dim / heads)
  const header = [dim, hidden, layers, heads, kvHeads, vocab, maxPos].map((n) => little(4, n))
  return bytesOfPieces(...header, rawBytes(Float32Array.from({ length: count }, (_, i) => i)))
}

const small: Header = [8, 12, 2, 4, 2, -5, 6]

describe('llama2.c', () => {
  it('finds each tensor where the file has it', async () => {
    const bytes = model(small)
    const store = await openLlama2c(fromBytes(bytes, 'small.bin'))
    expect(store.config).toEqual({ dim: 8, hiddenDim: 12, layers: 2, heads: 4, kvHeads: 2, vocab: 5, maxPos: 6, tied: false })
    expect(store.tensors.size).toBe(2 + 9 * 2 + 1)
    const first = async (name: string) => (await store.readFloat32(name))[0]
    expect(await first('model.embed_tokens.weight')).toBe(0)
    expect(await first('model.layers.0.input_layernorm.weight')).toBe(40)
    expect(await first('model.layers.1.input_layernorm.weight')).toBe(48)
    expect(await first('model.layers.1.self_attn.q_proj.weight')).toBe(56 + 64)
    expect(store.get('model.layers.1.self_attn.k_proj.weight').shape).toEqual([4, 8])
    expect(store.get('model.layers.0.mlp.down_proj.weight').shape).toEqual([8, 12])
    expect(await first('lm_head.weight')).toBe((bytes.length - 28) / 4 - 40)
    // The two rotary tables of 6 × 1 between the norm and the head are passed over.
    expect(await first('model.norm.weight')).toBe((bytes.length - 28) / 4 - 40 - 12 - 8)
  })

  it('ties the head to the embeddings where the vocabulary is positive', async () => {
    const store = await openLlama2c(fromBytes(model([8, 12, 2, 4, 2, 5, 6])))
    expect(store.config.tied).toBe(true)
    expect(store.has('lm_head.weight')).toBe(false)
  })

  it('reads a model inside a bigger file', async () => {
    const bytes = model(small)
    const source = fromBytes(bytesOfPieces('0123456789', bytes, 'tokenizer'))
    const store = await openLlama2c(source, { range: { offset: 10, length: bytes.length } })
    expect(store.get('model.embed_tokens.weight').offset).toBe(38)
    expect((await store.readFloat32('lm_head.weight'))[1]).toBe((bytes.length - 28) / 4 - 39)
    await expectRefusal(openLlama2c(source, { range: { offset: 20, length: bytes.length } }), /cannot be read/)
  })

  it('refuses other lengths, with what was expected', async () => {
    const bytes = model(small)
    await expectRefusal(
      openLlama2c(fromBytes(bytes.subarray(0, -4))),
      new RegExp(`should have ${bytes.length} bytes .* has ${bytes.length - 4};`),
    )
    await expectRefusal(openLlama2c(fromBytes(bytesOfPieces(bytes, 'more'))), /should have/)
    await expectRefusal(openLlama2c(fromBytes(new Uint8Array(27))), /has 27 bytes, too few/)
  })

  it.each<[Header, RegExp]>([
    [[8, 12, 0, 4, 2, 5, 6], /every size is at least 1/],
    [[8, 12, 2, 4, 2, 0, 6], /every size is at least 1/],
    [[8, -12, 2, 4, 2, 5, 6], /every size is at least 1/],
    [[8, 12, 2, 3, 1, 5, 6], /n_heads divides dim/],
    [[12, 12, 2, 4, 2, 5, 6], /a head has an even width/],
    [[8, 12, 2, 4, 3, 5, 6], /n_kv_heads divides n_heads/],
    [[2 ** 30, 2 ** 30, 2 ** 30, 1, 1, 2 ** 30, 2 ** 30], /should have/],
    [[0x616b3432, 2, 0, 0, 0, 0, 0], /version 2, but only version 0/],
  ])('refuses the header %j', async (header, message) => {
    const bytes = bytesOfPieces(...header.map((n) => little(4, n)), new Uint8Array(100))
    await expectRefusal(openLlama2c(fromBytes(bytes)), message)
  })

  const stories = 'models/stories260K/stories260K.bin'
  it.skipIf(!hasShared(stories))('opens stories260K', async () => {
    const store = await openLlama2c(shared(stories))
    expect(store.config).toEqual({ dim: 64, hiddenDim: 172, layers: 5, heads: 8, kvHeads: 4, vocab: 512, maxPos: 512, tied: true })
    expect(store.tensors.size).toBe(1 + 9 * 5 + 1)
    // In this file, norms are positive and near one, which weights are not: a wrong order of tensors would show.
    for (const name of store.tensors.keys()) {
      const values = await store.readFloat32(name)
      const mean = values.reduce((sum, x) => sum + x, 0) / values.length
      expect(Number.isFinite(mean)).toBe(true)
      if (name.includes('norm')) expect(Math.min(...values), name).toBeGreaterThan(0)
      else expect(Math.abs(mean), name).toBeLessThan(0.05)
    }
    await store.close()
    const source = await openFile(shared(stories))
    await expectRefusal(openLlama2c(source, { range: { offset: 0, length: source.size - 1 } }), /should have 1056540 bytes/)
  })
})
