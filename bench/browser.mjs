/**
 * @file What a page loads: bytes of the library's bundle after tree-shaking, and of the runtime, as they are and compressed (gzip -9).
 * Run it from the clone: node bench/browser.mjs
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { build } from 'vite'
import { browserSources } from '../scripts/tools/browser-table.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const source = (path) => JSON.stringify(join(root, 'src', path))

/** What a page might import. */
const entries = {
  'load, run, write': `import { load } from ${source('web/index.ts')}; globalThis.use = [load]`,
  'all of actlens/web': `import * as all from ${source('web/index.ts')}; globalThis.use = [all]`,
  'all of actlens/nn': `import * as all from ${source('nn/index.ts')}; globalThis.use = [all]`,
}

const sizes = (bytes) => ({ bytes: bytes.length, gzip: gzipSync(bytes, { level: 9 }).length })
const folder = mkdtempSync(join(tmpdir(), 'actlens-bundle-'))
try {
  const library = {}
  const runtime = {}
  for (const [name, code] of Object.entries(entries)) {
    const entry = join(folder, 'entry.js')
    const out = join(folder, 'out')
    writeFileSync(entry, code)
    await build({
      root,
      configFile: false,
      logLevel: 'error',
      plugins: [browserSources()],
      build: {
        outDir: out,
        emptyOutDir: true,
        assetsInlineLimit: 0,
        modulePreload: false,
        target: 'es2023',
        rolldownOptions: { input: { page: entry } },
      },
    })
    const files = readdirSync(out, { recursive: true, encoding: 'utf8' }).filter((f) => statSync(join(out, f)).isFile())
    const own = files.filter((f) => /\.js$/.test(f) && !/ort[.-]/.test(f))
    library[name] = sizes(Buffer.concat(own.map((f) => readFileSync(join(out, f)))))
    for (const f of files.filter((f) => !own.includes(f))) {
      const plain = f.replace(/^assets\//, '').replace(/-[\w-]{8}(?=\.(wasm|js|mjs)$)/, '')
      runtime[plain] ??= sizes(readFileSync(join(out, f)))
    }
  }
  writeFileSync(join(root, 'bench/results/browser-bundle.json'), `${JSON.stringify({ library, runtime }, undefined, 2)}\n`)
  const row = ([name, { bytes, gzip }]) => `| ${name} | ${(bytes / 1000).toFixed(0)} | ${(gzip / 1000).toFixed(0)} |`
  const table = (title, of) => [`| ${title} | kB | kB gzip |`, '|---|--:|--:|', ...Object.entries(of).map(row)].join('\n')
  writeFileSync(
    join(root, 'bench/results/browser-bundle.md'),
    `# What a page loads\n\nMade by \`node bench/browser.mjs\`.\n\n${table('imports', library)}\n\nOf the runtime a page loads the files of the device that it uses, once.\n\n${table('file', runtime)}\n`,
  )
} finally {
  rmSync(folder, { recursive: true, force: true })
}
