/** @file Versions and folders of this installation. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { versions as recordedVersions } from '../run/versions.ts'

/** The root of the package: of the clone, or of the installed package. The same from `src/cli` and from `dist/cli`. */
export const packageRoot = fileURLToPath(new URL('../../', import.meta.url))

/** Version of actlens. */
export function ownVersion(): string {
  return (JSON.parse(readFileSync(`${packageRoot}package.json`, 'utf8')) as { version: string }).version
}

/** Versions that a record names. */
export async function versions(): Promise<{ actlens: string; runtime: string; node: string }> {
  return { ...(await recordedVersions()), node: process.version }
}
