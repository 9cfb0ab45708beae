/** The built program as a process: what only a process has, its streams, signals and exit codes. */
import { execFile, spawn } from 'node:child_process'
import { copyFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { smallLlama, writeModel } from './testing.ts'

const root = fileURLToPath(new URL('../../', import.meta.url))
// Inside node_modules, so that the built files find their dependencies and nobody else finds them.
const built = join(root, 'node_modules', '.cache', 'actlens-cli-test')
const program = join(built, 'dist', 'cli', 'main.js')
let home: string
const at = (name: string) => join(home, name)

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'actlens-cli-'))
  await rm(built, { recursive: true, force: true })
  await mkdir(built, { recursive: true })
  await copyFile(join(root, 'package.json'), join(built, 'package.json'))
  const tsc = fileURLToPath(new URL('../../node_modules/typescript/bin/tsc', import.meta.url))
  // Type errors are the type checker's to tell: what runs is emitted all the same.
  await promisify(execFile)(process.execPath, [tsc, '-p', join(root, 'tsconfig.build.json'), '--outDir', join(built, 'dist')]).catch(
    () => {},
  )
  await writeModel(at('tiny'))
  await writeModel(at('long'), { ...smallLlama, max_position_embeddings: 4096 })
}, 120_000)
afterAll(() => rm(home, { recursive: true, force: true }))

interface Ended {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

/** Runs the program; `onStdout` sees the process and all it wrote so far. */
function run(argv: readonly string[], onStdout: (child: ReturnType<typeof spawn>, all: string) => void = () => {}): Promise<Ended> {
  return new Promise((done) => {
    const child = spawn(process.execPath, [program, ...argv], {
      env: { ...process.env, ACTLENS_HOME: at('home') },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let [stdout, stderr] = ['', '']
    child.stdout.on('data', (piece) => {
      stdout += piece
      onStdout(child, stdout)
    })
    child.stderr.on('data', (piece) => {
      stderr += piece
    })
    child.on('close', (code, signal) => done({ code, signal, stdout, stderr }))
  })
}

describe('the program', () => {
  it('writes one JSON document and nothing else to stdout', async () => {
    const { code, stdout } = await run(['run', at('tiny'), '--text', 'ids:5,6,7', '--taps', '*', '--json'])
    expect(code).toBe(0)
    expect(JSON.parse(stdout).tensors.length).toBeGreaterThan(20)
    // A pipe holds 64 KiB: what is larger must not be cut off at exit.
    const sites = await run(['sites', at('tiny'), '--json'])
    expect(JSON.parse(sites.stdout).sites.length).toBeGreaterThan(40)
  })

  it('ends with 2 after wrong usage and 1 after failed work, with one sentence', async () => {
    for (const [argv, code] of [
      [['sites'], 2],
      [['frobnicate'], 2],
      [['sites', at('nowhere')], 1],
    ] as const) {
      const ended = await run(argv)
      expect([ended.code, ended.stdout]).toEqual([code, ''])
      expect(ended.stderr).toMatch(/^[A-Z][^\n]*\.\n$/)
    }
  })

  it('keeps what it wrote at Ctrl-C and ends with 130', async () => {
    let sent = false
    const ended = await run(['generate', at('long'), '--prompt', 'ids:5', '--max-new-tokens', '4000'], (child, all) => {
      if (sent || all.split(',').length < 3) return
      sent = true
      child.kill('SIGINT')
    })
    expect([ended.code, ended.signal]).toEqual([130, null])
    expect(ended.stdout).toMatch(/^ids:\d+(,\d+)*\n$/)
    expect(ended.stderr).toMatch(/ended by cancelled/)
  })

  it('ends without a word when the reader of stdout goes away', async () => {
    const ended = await run(['generate', at('long'), '--prompt', 'ids:5', '--max-new-tokens', '4000', '--quiet'], (child) =>
      child.stdout?.destroy(),
    )
    expect([ended.code, ended.signal, ended.stderr]).toEqual([0, null, ''])
  })

  it('runs the benchmarks of a clone, and says so where there are none', async () => {
    const none = await run(['bench', 'J1'])
    expect([none.code, none.stderr]).toEqual([1, expect.stringMatching(/not part of this installation.*clone the repository/)])
    await mkdir(join(built, 'bench'), { recursive: true })
    const runner = `import { writeFileSync } from 'node:fs'
      const [job, ...flags] = process.argv.slice(2)
      console.log('table of ' + job)
      if (job === 'J0') process.exit(2)
      writeFileSync(flags[flags.indexOf('--out') + 1] + '/raw.json', JSON.stringify({ job, flags: flags.slice(0, 2) }))`
    await writeFile(join(built, 'bench', 'run.mjs'), runner)
    const json = await run(['bench', 'J1', '--threads', '3', '--json'])
    expect([json.code, JSON.parse(json.stdout)]).toEqual([0, { job: 'J1', flags: ['--threads', '3'] }])
    expect(json.stderr).toBe('table of J1\n')
    const wrong = await run(['bench', 'J0'])
    expect([wrong.code, wrong.stdout]).toEqual([2, 'table of J0\n'])
  })
})
