/** @file The house: floors import only downwards, files stay small, and nothing of one machine is committed. */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { homedir, tmpdir } from 'node:os'
import { dirname, join, relative, resolve, sep } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { describe, expect, test } from 'vitest'

interface FloorTable {
  readonly floors: readonly (readonly string[])[]
  readonly runtimeFolder: string
  readonly overrides: () => unknown[]
}

const root = fileURLToPath(new URL('..', import.meta.url))
const table = (await import(pathToFileURL(join(root, 'scripts', 'floors.mjs')).href)) as FloorTable
const read = (path: string) => readFileSync(join(root, path), 'utf8')

/** Files of the repository, without what is ignored. */
const files = (function list(folder: string): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = folder ? `${folder}/${entry.name}` : entry.name
    if (/^(node_modules|dist|artifacts|\.git|\.actlens|\.models|\.dist-.*)$/.test(entry.name)) return []
    return entry.isDirectory() ? list(path) : [path]
  })
})('')
const generated = (path: string) => path.includes('/gen/') || path === 'package-lock.json'
const code = files.filter((path) => /\.(ts|mjs|js|svelte|css|html)$/.test(path) && !generated(path))
const sources = code.filter((path) => path.startsWith('src/') && path.endsWith('.ts'))

/** What a file imports, in whatever form. */
function importsOf(path: string): string[] {
  const forms = [/\bfrom\s*'([^']+)'/g, /\bimport\s*'([^']+)'/g, /\bimport\(\s*'([^']+)'/g]
  return forms.flatMap((form) => [...read(path).matchAll(form)].map((m) => m[1] as string))
}

/** Floor of a file of `src`: its level and name; the files at the root of `src` are above the methods and below what people touch. */
function floorOf(path: string): { level: number; name: string } {
  const name = path.split('/').length > 2 ? (path.split('/')[1] as string) : 'index'
  const level = name === 'index' ? table.floors.length - 1.5 : table.floors.findIndex((names) => names.includes(name))
  return { level, name }
}

describe('floors', () => {
  test('every folder of src is a floor', () => {
    const known = table.floors.flat()
    const folders = readdirSync(join(root, 'src'), { withFileTypes: true }).filter((e) => e.isDirectory())
    expect(folders.map((e) => e.name).filter((name) => !known.includes(name))).toEqual([])
  })

  test('no file imports from a floor above', () => {
    const upward: string[] = []
    for (const path of sources)
      for (const target of importsOf(path)) {
        const self = /^actlens($|\/)/.test(target)
        if (!self && !target.startsWith('.')) continue
        const to = self
          ? 'src/index.ts'
          : relative(root, resolve(root, dirname(path), target))
              .split(sep)
              .join('/')
        if (floorOf(to).level > floorOf(path).level) upward.push(`${path} imports ${target}`)
      }
    expect(upward).toEqual([])
  })

  test('only the runtime folder imports ONNX Runtime', () => {
    const outside = code.filter((path) => /^(src|studio)\//.test(path) && !path.startsWith(table.runtimeFolder))
    expect(outside.filter((path) => importsOf(path).some((target) => /^onnxruntime-/.test(target)))).toEqual([])
  })

  test('biome.floors.json is what the table says', () => {
    expect(JSON.parse(read('biome.floors.json'))).toEqual({ overrides: table.overrides() })
  })

  test('the linter refuses imports from above, and lets others through', () => {
    const cases = {
      'src/base/above.ts': "import { a } from '../tensor/index.ts'",
      'src/tensor/ops/above.ts': "import type { a } from '../../models/spec.ts'",
      'src/models/families/above.ts': "export * from '../../sites/index.ts'",
      'src/run/above.ts': "const { a } = await import('../steer/index.ts')",
      'src/steer/above.ts': "import { a } from '../papers/index.ts'",
      'src/papers/above.ts': "import { a } from '../cli/main.ts'",
      'src/models/runtime.ts': "import * as ort from 'onnxruntime-node'",
      'src/run/self.ts': "import { load } from 'actlens'",
      'src/run/below.ts': "import { a } from '../tensor/index.ts'",
      'src/tensor/runtime/runtime.ts': "import * as ort from 'onnxruntime-node'",
      'src/cli/beside.ts': "import { a } from '../server/index.ts'",
    }
    const allowed = ['src/cli/beside.ts', 'src/run/below.ts', 'src/tensor/runtime/runtime.ts']
    expect(refused(cases).sort()).toEqual(
      Object.keys(cases)
        .filter((path) => !allowed.includes(path))
        .sort(),
    )
  })
})

/** The files that the linter refuses because of what they import, tried in a folder of their own. */
function refused(cases: Readonly<Record<string, string>>): string[] {
  const folder = mkdtempSync(join(tmpdir(), 'actlens-floors-'))
  try {
    for (const name of ['biome.json', 'biome.floors.json', '.gitignore']) writeFileSync(join(folder, name), read(name))
    for (const [path, line] of Object.entries(cases)) {
      mkdirSync(dirname(join(folder, path)), { recursive: true })
      writeFileSync(join(folder, path), `${line}\n`)
    }
    const biome = join(root, 'node_modules', '@biomejs', 'biome', 'bin', 'biome')
    const args = ['lint', '--only=style/noRestrictedImports', '--reporter=github', '--max-diagnostics=none', 'src']
    const run = spawnSync(process.execPath, [biome, ...args], { cwd: folder, encoding: 'utf8' })
    const found = run.stdout.split('\n').filter((line) => line.includes('noRestrictedImports'))
    expect(run.status).toBe(1)
    return found.map((line) =>
      (/file=([^,]+),/.exec(line)?.[1] ?? '')
        .split('\\')
        .join('/')
        .replace(/^.*\/(?=src\/)/, ''),
    )
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

describe('the house', () => {
  test('no file has over 800 lines', () => {
    expect(code.filter((path) => read(path).split('\n').length > 801)).toEqual([])
  })

  test('the lockfile names no registry', () => {
    const lock = JSON.parse(read('package-lock.json')) as { packages: Record<string, { resolved?: string }> }
    expect(Object.entries(lock.packages).flatMap(([path, p]) => (p.resolved ? [`${path}: ${p.resolved}`] : []))).toEqual([])
  })

  test('no file holds a path of this machine', () => {
    const own = [root.replace(/[\\/]$/, ''), homedir()].filter((path) => path.split(/[\\/]/).filter(Boolean).length > 1)
    const text = files.filter((path) => !/\.(png|jpg|ico|woff2?|safetensors|bin|gguf|onnx)$/.test(path))
    expect(text.filter((path) => own.some((folder) => read(path).includes(folder)))).toEqual([])
  })

  test('what package.json exports exists in src', () => {
    const { exports } = JSON.parse(read('package.json')) as { exports: Record<string, string | { default: string }> }
    const targets = Object.values(exports).flatMap((e) => (typeof e === 'string' ? [] : [e.default]))
    const missing = targets.filter((path) => !existsSync(join(root, path.replace('./dist/', 'src/').replace(/\.js$/, '.ts'))))
    expect(missing).toEqual([])
  })
})
