/** @file Runs every block of code of the guide in docs/images/guide, where its pictures then lie: `node scripts/guide.mjs [PAGE]`, after a build. */
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const folder = join(root, '.actlens', `guide-${process.pid}`)
const images = join(root, 'docs', 'images', 'guide')
mkdirSync(folder, { recursive: true })
mkdirSync(images, { recursive: true })
process.chdir(images)
try {
  for (const page of readdirSync(join(root, 'docs', 'guide')).sort()) {
    if (process.argv[2] !== undefined && !page.startsWith(process.argv[2])) continue
    const text = readFileSync(join(root, 'docs', 'guide', page), 'utf8')
    for (const [i, [, code]] of [...text.matchAll(/^```js\n([\s\S]*?)^```$/gm)].entries()) {
      // Inside the clone, so that the package is found by its own name.
      const path = join(folder, `${page}-${i}.mjs`)
      writeFileSync(path, code)
      console.log(`\n== ${page}`)
      await import(pathToFileURL(path).href)
    }
  }
} finally {
  rmSync(folder, { recursive: true, force: true })
  // What pages write besides pictures is not kept.
  for (const name of readdirSync(images)) if (!name.endsWith('.svg')) rmSync(join(images, name))
}
