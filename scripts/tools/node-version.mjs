/** @file Says so when Node is too old. Written without newer syntax, so that an old Node gets as far as the sentence. */
import { readFileSync } from 'node:fs'

/** Ends the process unless Node is at least what package.json asks for. */
export function checkNode() {
  const wanted = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')).engines.node.replace('>=', '')
  const own = process.versions.node.split('.').map(Number)
  const least = wanted.split('.').map(Number)
  for (let i = 0; i < least.length && own[i] <= least[i]; i++) {
    if (own[i] === least[i]) continue
    console.error(`actlens needs Node ${wanted} or newer, but this is Node ${process.versions.node}. Install a newer Node and try again.`)
    process.exit(1)
  }
}
