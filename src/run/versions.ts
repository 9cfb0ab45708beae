/** @file Versions that records carry. */
import { getRuntime } from '../tensor/index.ts'

let own: Promise<string> | undefined

/** Versions of actlens and of the runtime, for records. */
export async function versions(): Promise<{ actlens: string; runtime: string }> {
  own ??= ownVersion()
  return { actlens: await own, runtime: (await getRuntime()).version }
}

async function ownVersion(): Promise<string> {
  if (typeof process === 'undefined' || !process.versions?.node) return 'in a browser'
  const { module } = await import('../base/node.ts')
  return (module.createRequire(import.meta.url)('../../package.json') as { version: string }).version
}
