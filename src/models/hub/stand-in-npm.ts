/** @file For tests: tar archives and an npm that answers without a registry. */

import { createHash } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import type { RunNpm } from './npm-command.ts'

/** A file for {@link packTar}; the form is how a name that is too long for the header is written. */
export interface TarItem {
  readonly path: string
  readonly bytes: Uint8Array
  readonly form?: 'prefix' | 'gnu' | 'pax'
  readonly type?: string
}

/** A tar archive of these files. */
export function packTar(items: readonly TarItem[]): Uint8Array {
  const blocks: Uint8Array[] = []
  const add = (name: string, type: string, bytes: Uint8Array, prefix = ''): void => {
    blocks.push(header(name, prefix, type, bytes.length), bytes, new Uint8Array((512 - (bytes.length % 512)) % 512))
  }
  for (const { path, bytes, form, type = '0' } of items) {
    if (form === 'gnu') add('././@LongLink', 'L', new TextEncoder().encode(`${path}\0`))
    if (form === 'pax') add('PaxHeader/x', 'x', new TextEncoder().encode(`30 mtime=1\n${path.length + 9} path=${path}\n`))
    const cut = form === 'prefix' ? path.lastIndexOf('/') : -1
    add(cut < 0 ? path.slice(0, 100) : path.slice(cut + 1), type, bytes, cut < 0 ? '' : path.slice(0, cut))
  }
  return new Uint8Array(Buffer.concat([...blocks, new Uint8Array(1024)]))
}

function header(name: string, prefix: string, type: string, size: number): Uint8Array {
  const block = Buffer.alloc(512)
  block.write(name, 0)
  block.write('000644 \0', 100)
  block.write(`${size.toString(8).padStart(11, '0')} `, 124)
  block.write('        ', 148)
  block.write(type, 156)
  block.write('ustar\x0000', 257)
  block.write(prefix, 345)
  const sum = block.reduce((a, b) => a + b, 0)
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  return block
}

/** A package as a registry holds it. */
export interface StandInPackage {
  readonly tgz: Uint8Array
  readonly integrity: string
}

/** A packed package of these files. */
export function packPackage(files: Record<string, Uint8Array>): StandInPackage {
  const tgz = gzipSync(packTar(Object.entries(files).map(([path, bytes]) => ({ path: `package/${path}`, bytes }))))
  return { tgz, integrity: `sha512-${createHash('sha512').update(tgz).digest('base64')}` }
}

/** An npm that knows one package; what it is asked is collected in `calls`. */
export function fakeNpm(
  spec: string,
  tarball: string,
  packed: StandInPackage,
  settings: { integrity?: string; proxy?: string } = {},
): { npm: RunNpm; calls: string[] } {
  const calls: string[] = []
  const npm: RunNpm = async (args) => {
    calls.push(args[0] as string)
    const answer = (value: unknown, code = 0) => ({ code, stdout: JSON.stringify(value), stderr: '' })
    if (args[0] === 'config') return { code: 0, stdout: `proxy=${settings.proxy ?? 'null'}\nhttps-proxy=null\n`, stderr: '' }
    if (args[1] !== spec) return answer({ error: { code: 'E404', summary: 'Not Found' } }, 1)
    if (args[0] === 'view') return answer({ 'dist.tarball': tarball, 'dist.integrity': settings.integrity ?? packed.integrity })
    const filename = '@scope/packed-1.0.0.tgz'
    await writeFile(join(args[args.indexOf('--pack-destination') + 1] as string, 'scope-packed-1.0.0.tgz'), packed.tgz)
    return answer([{ filename }])
  }
  return { npm, calls }
}
