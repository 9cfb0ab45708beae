import { describe, expect, test } from 'vitest'
import { FormatError } from '../../base/errors.ts'
import { someBytes } from './stand-in.ts'
import { packTar, type TarItem } from './stand-in-npm.ts'
import { TarFinder } from './tar.ts'

async function find(tar: Uint8Array, wanted: string, step = tar.length) {
  const pieces: Uint8Array[] = []
  let size = -1
  let ended = 0
  const finder = new TarFinder(wanted, {
    onStart: (bytes) => {
      size = bytes
    },
    onData: (bytes) => {
      pieces.push(bytes.slice())
    },
    onEnd: () => {
      ended++
    },
  })
  for (let at = 0; at < tar.length; at += step) await finder.push(tar.subarray(at, at + step))
  return { bytes: new Uint8Array(Buffer.concat(pieces)), size, ended, finder }
}

const body = someBytes(1500, 3)
const long = `package/${'deep/'.repeat(40)}model.bin`
const archive: TarItem[] = [
  { path: 'package/package.json', bytes: new TextEncoder().encode('{}') },
  { path: 'package/empty', bytes: new Uint8Array(0) },
  { path: 'package/dist/model.bin', bytes: body },
  { path: `package/${'long-folder-name/'.repeat(7)}file`, bytes: someBytes(10, 4), form: 'prefix' },
  { path: long, bytes: someBytes(600, 5), form: 'gnu' },
  { path: long.replace('model', 'pax'), bytes: someBytes(700, 6), form: 'pax' },
]

describe('finding a file in a tar stream', () => {
  test.each([1, 7, 511, 512, 513, 100_000])('in pieces of %i bytes', async (step) => {
    const tar = packTar(archive)
    const found = await find(tar, 'dist/model.bin', step)
    expect([found.size, found.ended, found.finder.found]).toEqual([1500, 1, true])
    expect(found.bytes).toEqual(body)
  })

  test('names in a prefix, GNU long names and pax names', async () => {
    const tar = packTar(archive)
    for (const item of archive.slice(3)) {
      const found = await find(tar, item.path.slice('package/'.length), 1000)
      expect(found.bytes).toEqual(item.bytes)
    }
  })

  test('an empty file and a file that is not there', async () => {
    const tar = packTar(archive)
    expect(await find(tar, 'empty')).toMatchObject({ size: 0, ended: 1 })
    const none = await find(tar, 'model.bin')
    expect(none).toMatchObject({ size: -1, ended: 0 })
    expect(none.finder.found).toBe(false)
    expect(none.finder.passed.slice(0, 3)).toEqual(['package.json', 'empty', 'dist/model.bin'])
  })

  test('a link is not a file', async () => {
    const tar = packTar([{ path: 'package/a', bytes: new Uint8Array(0), type: '2' }])
    expect((await find(tar, 'a')).finder.found).toBe(false)
  })

  test('a damaged header and an impossible size are refused', async () => {
    const tar = packTar(archive)
    tar[3] = 1
    await expect(find(tar, 'dist/model.bin')).rejects.toThrow(/The archive is damaged: a header has a wrong checksum/)
    await expect(find(tar, 'dist/model.bin')).rejects.toBeInstanceOf(FormatError)
    const absurd = packTar([{ path: 'package/x', bytes: new Uint8Array(2_000_000), type: 'x' }])
    await expect(find(absurd, 'y')).rejects.toThrow(/a header is too long/)
  })
})
