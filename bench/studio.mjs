/** @file The studio in Chromium on the embedded model: `node bench/studio.mjs`. Needs a build (`npm run build`) and Chromium, named in CHROMIUM where it is not found. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { chromium } from 'playwright-core'
import { startServer } from '../dist/server/index.js'
import { chromiumFlags, chromiumPath } from '../scripts/tools/chromium.mjs'
import { machine } from './lib.mjs'

if (!chromiumPath) {
  console.error('There is no Chromium here; install it, or name it in CHROMIUM.')
  process.exit(1)
}
const rounds = 7
const folder = mkdtempSync(join(tmpdir(), 'actlens-studio-bench-'))
const server = await startServer({ model: 'embedded', port: 0, threads: 2, captures: join(folder, 'captures') })
const context = await chromium.launchPersistentContext(join(folder, 'profile'), {
  executablePath: chromiumPath,
  args: chromiumFlags,
  viewport: { width: 1440, height: 900 },
})
const page = context.pages()[0]
const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]
const results = []
const note = (name, unit, values, target) => results.push({ name, unit, median: median(values), worst: Math.max(...values), target })
const open = async (hash) => {
  await page.goto('about:blank')
  const begun = performance.now()
  await page.goto(`${server.url}${hash}`)
  return begun
}

try {
  // Once, so that the server has what it compiles in any case.
  await open('')
  await page.locator('.stories[aria-busy=false]').waitFor()

  const pictures = []
  for (let i = 0; i < rounds; i++) {
    const begun = await open('')
    await page.locator('.grid canvas').waitFor()
    pictures.push(performance.now() - begun)
    await page.locator('.stories[aria-busy=false]').waitFor()
  }
  note('page opened to first picture (the grid)', 'ms', pictures, 1000)

  const slides = await page.evaluate(async (count) => {
    const slider = document.querySelector('#strength')
    const steered = () => document.querySelectorAll('.story')[1]
    const frame = () => new Promise((resolve) => requestAnimationFrame(resolve))
    const times = []
    for (let i = 0; i < count; i++) {
      const begun = performance.now()
      slider.value = String(i % 2 ? 1.3 + i / 10 : -1.3 - i / 10)
      slider.dispatchEvent(new Event('input', { bubbles: true }))
      while (!steered().classList.contains('dim') && performance.now() - begun < 1000) await frame()
      while (steered().classList.contains('dim') && performance.now() - begun < 10_000) await frame()
      times.push(performance.now() - begun)
      await new Promise((resolve) => setTimeout(resolve, 1500))
    }
    return times
  }, rounds)
  note('slider to the first words of the new text', 'ms', slides, 300)

  await page.locator('.grid').scrollIntoViewIfNeeded()
  const box = await page.locator('.grid').boundingBox()
  await page.evaluate(() => {
    const times = []
    window.frames_ = times
    const tick = (now) => {
      times.push(now)
      requestAnimationFrame(tick)
    }
    requestAnimationFrame(tick)
  })
  const until = performance.now() + 4000
  for (let i = 0; performance.now() < until; i++)
    await page.mouse.move(box.x + 40 + ((i * 9) % (box.width - 60)), box.y + 40 + ((i * 5) % (box.height - 60)))
  const rate = await page.evaluate(() => (1000 * (window.frames_.length - 1)) / (window.frames_.at(-1) - window.frames_[0]))
  results.push({ name: 'frames while hovering over the grid', unit: '1/s', median: rate, worst: rate, target: 50 })

  // 6 layers × 6 heads × 18 positions: as many cells as a sweep of 12 layers over 54 tokens.
  const words = 'Tom and Anna went to the park. Anna gave the ball to'
  const sweeps = []
  const parts = []
  for (let i = 0; i < rounds; i++) {
    const begun = await open(
      `#${new URLSearchParams({ room: 'patch', 'patch.site': 'z', 'pair.clean': words, 'pair.corrupt': words.replace('Anna gave', 'Tom gave'), 'pair.answer': ' Tom', 'pair.wrong': ' Anna' })}`,
    )
    await page.locator('.grid canvas').waitFor()
    parts.push(performance.now() - begun)
    await page.locator('.work').waitFor({ state: 'detached' })
    sweeps.push(performance.now() - begun)
  }
  note('Patch opened to the first cells of a sweep over heads', 'ms', parts, 1000)
  note('Patch opened to its last cell', 'ms', sweeps, undefined)
} finally {
  await context.close()
  await server.close()
  rmSync(folder, { recursive: true, force: true })
}

const { cpu, cores } = machine()
const rows = results.map(
  (r) =>
    `| ${r.name} | ${r.median.toFixed(0)} ${r.unit} | ${r.worst.toFixed(0)} ${r.unit} | ${r.target === undefined ? '' : `${r.target} ${r.unit}`} |`,
)
const text = `# The studio on stories15M\n\n${cpu}, ${cores} cores, ${new Date().toISOString().slice(0, 10)}; headless Chromium without GPU on the same machine; ${rounds} rounds.\n\n| what | median | worst | wanted |\n|---|---|---|---|\n${rows.join('\n')}\n`
console.log(text)
const out = new URL('./results/studio', import.meta.url).pathname
writeFileSync(`${out}.json`, `${JSON.stringify({ machine: machine(), date: new Date().toISOString().slice(0, 10), results }, null, 1)}\n`)
writeFileSync(`${out}.md`, text)
