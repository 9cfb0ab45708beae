/** @file The docs are true: generated parts agree with the code, links lead somewhere, every block of code runs and type-checks, examples run. */
import { execFileSync, spawn } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { formatWithOptions } from 'node:util'
import { afterAll, describe, expect, test, vi } from 'vitest'
import { resolveSource } from '../src/models/hub/index.ts'

interface Docs {
  readonly pages: readonly string[]
  readonly filled: (text: string, from: (path: string) => Promise<unknown>) => Promise<string>
}

interface Block {
  /** `README.md, block 3 (line 57)` */
  readonly name: string
  readonly language: string
  readonly code: string
}

const root = fileURLToPath(new URL('..', import.meta.url))
const docs = (await import(pathToFileURL(join(root, 'scripts', 'docs.mjs')).href)) as Docs
const read = (path: string) => readFileSync(join(root, path), 'utf8')
const embedded = await resolveSource('embedded', { offline: true }).then(
  () => true,
  () => false,
)
const cli = join(root, 'dist', 'cli', 'main.js')

const blocks = docs.pages.flatMap((page) => {
  const text = read(page)
  return [...text.matchAll(/^```(\w+)\n([\s\S]*?)^```$/gm)].map((m, i): Block => {
    const line = text.slice(0, m.index).split('\n').length
    return { name: `${page}, block ${i + 1} (line ${line})`, language: m[1] as string, code: m[2] as string }
  })
})
const modules = blocks.filter((b) => ['ts', 'js'].includes(b.language))
const commands = blocks.filter((b) => b.language === 'sh' && /^(npm start -- |npx actlens )/m.test(b.code))

/** Where blocks become modules: inside the clone, so that they are transformed as its own sources are. */
const folder = join(root, '.actlens', `blocks-${process.pid}`)
mkdirSync(folder, { recursive: true })
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const fileOf = (block: Block) => join(folder, `${block.name.replace(/\W+/g, '-')}.${block.language}`)
for (const block of modules) writeFileSync(fileOf(block), block.code)

describe('pages', () => {
  test.each(docs.pages)('%s: generated parts are what the code says (npm run docs writes them)', async (page) => {
    const text = read(page)
    expect(await docs.filled(text, (path) => import(/* @vite-ignore */ join(root, 'src', `${path}.ts`)))).toBe(text)
  })

  test.each(docs.pages)('%s: links lead somewhere', (page) => {
    const links = [...read(page).matchAll(/\]\(([^)#\s]+)[^)]*\)/g)].map((m) => m[1] as string).filter((to) => !/^[a-z]+:/.test(to))
    expect(links.filter((to) => !existsSync(resolve(root, dirname(page), to)))).toEqual([])
  })

  test('every dependency has its reason', () => {
    const { dependencies, devDependencies } = JSON.parse(read('package.json')) as Record<string, Record<string, string>>
    const text = read('docs/dependencies.md')
    expect(Object.keys({ ...dependencies, ...devDependencies }).filter((name) => !text.includes(`| \`${name}\` |`))).toEqual([])
  })
})

describe('blocks of code', () => {
  for (const block of modules)
    test.skipIf(block.code.includes("'embedded'") && !embedded)(`${block.name} runs`, async () => {
      const printed = await printedBy(fileOf(block))
      for (const [, expected] of block.code.matchAll(/\/\/ → (.+)$/gm)) expect(printed).toContain(expected)
    })

  test('they have the types that they seem to have', () => {
    const config = {
      extends: '../../tsconfig.json',
      compilerOptions: {
        // What users write is checked as strictly as `strict` does, not as we do ourselves.
        noUnusedLocals: false,
        noUncheckedIndexedAccess: false,
        paths: { actlens: ['../../src/index.ts'], 'actlens/*': ['../../src/*/index.ts'] },
      },
      include: ['*.ts'],
    }
    writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(config))
    const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc')
    expect(outputOf(() => execFileSync(process.execPath, [tsc, '-p', folder], { encoding: 'utf8' }))).toBe('')
  })
})

describe('command lines', () => {
  for (const block of commands)
    test.skipIf(!existsSync(cli) || !embedded || process.platform === 'win32')(`${block.name} runs`, async () => {
      // npm and npx of the block are the built command line.
      const bin = mkdtempSync(join(tmpdir(), 'actlens-bin-'))
      const shim = (skip: number) => `#!/bin/sh\nshift ${skip}\nexec "${process.execPath}" "${cli}" "$@"\n`
      writeFileSync(join(bin, 'npm'), shim(2), { mode: 0o755 })
      writeFileSync(join(bin, 'npx'), shim(1), { mode: 0o755 })
      try {
        expect(await inFolder(() => complaintsOf(block.code, bin))).toBe('')
      } finally {
        rmSync(bin, { recursive: true, force: true })
      }
    })
})

describe('examples', () => {
  for (const name of readdirSync(join(root, 'examples')).filter((f) => f.endsWith('.mjs')))
    test.skipIf(!embedded)(`${name} runs`, async () => {
      const printed = await printedBy(join(root, 'examples', name))
      expect(printed.length).toBeGreaterThan(20)
    })
})

/** Does the work in an empty folder of its own. */
async function inFolder<T>(work: () => Promise<T>): Promise<T> {
  const place = mkdtempSync(join(tmpdir(), 'actlens-docs-'))
  const before = process.cwd()
  process.chdir(place)
  try {
    return await work()
  } finally {
    process.chdir(before)
    rmSync(place, { recursive: true, force: true })
  }
}

/** What a module prints while it runs in a folder of its own. */
async function printedBy(path: string): Promise<string> {
  let printed = ''
  const log = vi.spyOn(console, 'log').mockImplementation((...values) => {
    printed += `${formatWithOptions({ colors: false }, ...values)}\n`
  })
  const write = vi.spyOn(process.stdout, 'write').mockImplementation((text) => {
    printed += String(text)
    return true
  })
  try {
    await inFolder(() => import(/* @vite-ignore */ path))
    return printed
  } finally {
    log.mockRestore()
    write.mockRestore()
  }
}

/** Runs a script of the shell with the commands of `bin` before all others; gives what it complained of, and nothing where it succeeded. */
function complaintsOf(script: string, bin: string): Promise<string> {
  const env = { ...process.env, PATH: `${bin}:${process.env.PATH}` }
  const child = spawn('sh', ['-e', '-c', script], { stdio: ['ignore', 'ignore', 'pipe'], env })
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text
  })
  return new Promise((done) => child.on('close', (code) => done(code === 0 ? '' : `${stderr}exit code ${code}`)))
}

function outputOf(work: () => string): string {
  try {
    return work()
  } catch (error) {
    return (error as { stdout: string }).stdout
  }
}
