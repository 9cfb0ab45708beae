/**
 * @file The `browser` table of package.json, which puts modules for a browser in the place of those for Node. Bundlers apply it to the package that
 * they find in node_modules; this plugin applies it to the sources, for our own bundles.
 */
import { readFileSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** Source files and what stands for them in a browser, as absolute paths. */
export function browserTable() {
  const { browser } = JSON.parse(readFileSync(resolve(root, 'package.json'), 'utf8'))
  const source = (path) => resolve(root, path.replace('./dist/', 'src/').replace(/\.js$/, '.ts'))
  return new Map(Object.entries(browser).map(([from, to]) => [source(from), source(to)]))
}

/** A plugin of Vite. */
export function browserSources() {
  const table = browserTable()
  return {
    name: 'actlens-browser-sources',
    enforce: 'pre',
    resolveId(id, importer) {
      return id.startsWith('.') && importer ? (table.get(resolve(dirname(importer), id)) ?? null) : null
    },
  }
}
