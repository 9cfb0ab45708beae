/** Captures that are killed, as processes: kill −9 at any point, then --resume, gives the files of an uninterrupted run. */
import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { copyFile, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { writeSafetensors } from '../models/formats/index.ts'
import { randomStream } from '../models/sampling.ts'
import { tinyLlama, tinyTensors } from '../run/testing.ts'

const root = fileURLToPath(new URL('../../', import.meta.url))
// Inside node_modules, so that the built files find their dependencies and nobody else finds them.
const built = join(root, 'node_modules', '.cache', 'actlens-capture-test')
const at = (name: string) => join(built, name)
/** A few points in the default suite; as many as the fault list asks for in the full one. */
const points = process.env.ACTLENS_FULL ? 20 : 3
const random = randomStream(7)

beforeAll(async () => {
  await rm(built, { recursive: true, force: true })
  await mkdir(at('model'), { recursive: true })
  await copyFile(join(root, 'package.json'), at('package.json'))
  const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc')
  // Type errors are the type checker's to tell: what runs is emitted all the same.
  await promisify(execFile)(process.execPath, [tsc, '-p', join(root, 'tsconfig.build.json'), '--outDir', at('dist')]).catch(() => {})
  await writeFile(at('model/config.json'), JSON.stringify(tinyLlama))
  await writeSafetensors(at('model/model.safetensors'), tinyTensors(tinyLlama))
  const rows = Array.from({ length: 300 }, () => Array.from({ length: 1 + Math.floor(random() * 60) }, () => Math.floor(random() * 61)))
  await writeFile(at('data.jsonl'), rows.map((r) => `${JSON.stringify({ input_ids: r })}\n`).join(''))
}, 180_000)

afterAll(() => rm(built, { recursive: true, force: true }))

const settings = ['--data', at('data.jsonl'), '--sites', 'resid_post.*,z.0', '--batch-tokens', '64', '--shard-tokens', '256', '--quiet']

/** Runs the command; `whileRunning` is called again and again and may kill it. */
async function run(out: string, more: readonly string[], whileRunning: (kill: () => void) => Promise<void> = async () => {}) {
  const argv = [at('dist/cli/main.js'), 'capture', at('model'), ...settings, '--out', out, '--threads', '1', ...more]
  const child = spawn(process.execPath, argv, { stdio: ['ignore', 'ignore', 'pipe'] })
  let stderr = ''
  child.stderr.on('data', (piece) => {
    stderr += piece
  })
  const ended = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((done) => {
    child.on('close', (code, signal) => done({ code, signal }))
  })
  let running = true
  ended.then(() => {
    running = false
  })
  while (running) {
    await whileRunning(() => child.kill('SIGKILL'))
    await new Promise((done) => setTimeout(done, 4))
  }
  return { ...(await ended), stderr }
}

/** SHA-256 of each file; comparing the bytes themselves takes the test runner minutes. */
async function contents(folder: string): Promise<Record<string, string>> {
  const names = (await readdir(folder)).sort()
  const hash = async (name: string) =>
    createHash('sha256')
      .update(await readFile(join(folder, name)))
      .digest('hex')
  return Object.fromEntries(await Promise.all(names.map(async (n) => [n, await hash(n)] as const)))
}

it(
  `gives the same files after kill −9 at ${points} points`,
  async () => {
    expect(await run(at('whole'), [])).toMatchObject({ code: 0, stderr: '' })
    const want = await contents(at('whole'))
    const shards = Object.keys(want).length - 1
    expect(shards).toBeGreaterThan(20)
    for (let point = 0; point < points; point++) {
      const out = at(`killed-${point}`)
      // Killed a moment after a number of shards was seen: while computing, writing, renaming, or noting.
      const [wanted, delay] = [Math.floor(random() * shards), random() * 15]
      const killed = await run(out, [], async (kill) => {
        const seen = (await readdir(out).catch(() => [])).filter((n) => /^activations/.test(n)).length
        if (seen < wanted) return
        await new Promise((done) => setTimeout(done, delay))
        kill()
      })
      expect(killed.signal, killed.stderr).toBe('SIGKILL')
      expect(await run(out, ['--resume'])).toMatchObject({ code: 0, stderr: '' })
      expect(await contents(out), `killed after ${wanted} shards and ${delay} ms`).toEqual(want)
    }
  },
  30_000 * (points + 1),
)
