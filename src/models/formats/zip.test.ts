import { describe, expect, it } from 'vitest'
import { fromBytes } from './bytes.ts'
import { bytesOfPieces, expectRefusal, little, zip } from './testing.ts'
import { looksLikeZip, readZip } from './zip.ts'

const read = (bytes: Uint8Array) => readZip(fromBytes(bytes, 'test.zip'))
const plain = zip({ 'a/one': bytesOfPieces('first'), 'a/two': bytesOfPieces('second') })

/** The same archive, its directory in 64-bit fields as torch.save writes it beyond 4 GiB. */
function wide(): Uint8Array {
  const data = bytesOfPieces('first')
  const moved = little(4, 0xffffffff)
  const sizes = bytesOfPieces(little(4, 0), moved, moved, little(2, 1))
  const local = bytesOfPieces(little(4, 0x04034b50), little(2, 45), new Uint8Array(8), sizes, little(2, 0), 'a', data)
  const extra = bytesOfPieces(little(2, 99), little(2, 1), 7, little(2, 1), little(2, 24), little(8, 5), little(8, 5), little(8, 0))
  const entry = bytesOfPieces(
    little(4, 0x02014b50),
    new Uint8Array(12),
    sizes,
    little(2, extra.length),
    new Uint8Array(10),
    moved,
    'a',
    extra,
  )
  const end64 = bytesOfPieces(little(4, 0x06064b50), new Uint8Array(28), little(8, 1), little(8, entry.length), little(8, local.length))
  const locator = bytesOfPieces(little(4, 0x07064b50), little(4, 0), little(8, local.length + entry.length), little(4, 1))
  const end = bytesOfPieces(little(4, 0x06054b50), new Uint8Array(4), little(2, 0xffff), little(2, 0xffff), moved, moved, little(2, 0))
  return bytesOfPieces(local, entry, end64, locator, end)
}

describe('zip directory', () => {
  it('finds members in place', async () => {
    const members = await read(plain)
    expect([...members.keys()]).toEqual(['a/one', 'a/two'])
    const { offset, size } = members.get('a/two')!
    expect(plain.slice(offset, offset + size)).toEqual(bytesOfPieces('second'))
    expect(looksLikeZip(plain)).toBe(true)
    expect(looksLikeZip(bytesOfPieces('PK'))).toBe(false)
  })

  it('reads 64-bit directories', async () => {
    const bytes = wide()
    const { offset, size } = (await read(bytes)).get('a')!
    expect(bytes.slice(offset, offset + size)).toEqual(bytesOfPieces('first'))
  })

  it('finds the end before a comment', async () => {
    const comment = bytesOfPieces('a comment')
    const bytes = bytesOfPieces(plain.subarray(0, -2), little(2, comment.length), comment)
    expect((await read(bytes)).size).toBe(2)
  })

  /** The archive with bytes replaced, counted from the start of its directory. */
  function patched(at: number, bytes: Uint8Array): Uint8Array {
    const start = new DataView(plain.buffer).getUint32(plain.length - 6, true)
    const out = plain.slice()
    out.set(bytes, start + at)
    return out
  }

  it.each<[string, Uint8Array, RegExp]>([
    ['no directory', new Uint8Array(100), /no directory at its end/],
    ['nothing', new Uint8Array(0), /no directory at its end/],
    [
      'a count beyond the directory',
      bytesOfPieces(plain.subarray(0, -14), little(2, 900), little(2, 900), plain.subarray(-10)),
      /claims 900 members/,
    ],
    ['a directory beyond the file', bytesOfPieces(plain.subarray(0, -6), little(4, 2 ** 31), little(2, 0)), /cannot be read/],
    ['no directory entry', patched(0, little(4, 1)), /broken directory/],
    ['a name beyond the directory', patched(28, little(2, 60_000)), /broken directory/],
    ['encryption', patched(8, little(2, 1)), /is encrypted/],
    ['two sizes', patched(20, little(4, 1)), /two sizes/],
    ['data beyond the file', patched(20, bytesOfPieces(little(4, 2 ** 20), little(4, 2 ** 20))), /cannot be read/],
    ['a header elsewhere', patched(42, little(4, 3)), /no member where a\/one should be/],
    ['a missing 64-bit size', patched(42, little(4, 0xffffffff)), /lacks a 64-bit size/],
    ['a member inside another', patched(20, bytesOfPieces(little(4, 30), little(4, 30))), /inside another/],
  ])('refuses %s', async (_, bytes, message) => {
    await expectRefusal(read(bytes), message)
  })

  it('refuses a name that comes twice', async () => {
    const twice = zip({ 'a/one': bytesOfPieces('1'), 'a/two': bytesOfPieces('2') })
    const text = new TextDecoder('latin1').decode(twice).replaceAll('a/two', 'a/one')
    await expectRefusal(read(Uint8Array.from(text, (c) => c.charCodeAt(0))), /the member a\/one twice/)
  })
})
