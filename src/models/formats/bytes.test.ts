import { truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { type ByteSource, fromBlob, fromBytes, openFile } from './bytes.ts'
import { expectRefusal, temporaryFolder } from './testing.ts'

const content = Uint8Array.from({ length: 1000 }, (_, i) => i & 255)

function file(): string {
  const path = join(temporaryFolder(), 'content.bin')
  writeFileSync(path, content)
  return path
}

const kinds: Record<string, () => Promise<ByteSource>> = {
  'a file': () => openFile(file()),
  'bytes in memory': async () => fromBytes(content),
  'a blob': async () => fromBlob(new Blob([content])),
}

describe.each(Object.keys(kinds))('%s', (kind) => {
  it('reads ranges into arrays of their own', async () => {
    const source = await kinds[kind]!()
    expect(source.size).toBe(1000)
    const part = await source.read(301, 100)
    expect(part).toEqual(content.slice(301, 401))
    expect(part.byteOffset).toBe(0)
    expect(await source.read(1000, 0)).toHaveLength(0)
    part.fill(0)
    expect(await source.read(301, 1)).toEqual(content.slice(301, 302))
    await source.close()
    await source.close()
  })

  it.each([
    [990, 11],
    [-1, 5],
    [0.5, 1],
    [0, 2 ** 60],
    [Number.NaN, 1],
    [2 ** 53, 2 ** 53],
  ])('refuses %d + %d', async (offset, length) => {
    const source = await kinds[kind]!()
    await expectRefusal(source.read(offset, length), /has 1000 bytes/)
    await source.close()
  })
})

describe('openFile', () => {
  it('explains what is missing or wrong', async () => {
    const folder = temporaryFolder()
    await expectRefusal(openFile(join(folder, 'absent.bin')), /There is no file .*absent\.bin; check the path\./)
    await expectRefusal(openFile(folder), /is not a file/)
    await expectRefusal(openFile(join(file(), 'x')), /a part of the path is a file/)
  })

  it('notices a file that shrinks, and one that was closed', async () => {
    const path = file()
    const source = await openFile(path)
    truncateSync(path, 10)
    await expectRefusal(source.read(0, 100), /became shorter/)
    await source.close()
    await expectRefusal(source.read(0, 5), /was closed/)
  })
})
