/**
 * @file Fills the generated parts of README.md and docs/*.md: what stands between `<!-- generated: NAME -->` and `<!-- end -->`
 * comes from the tables of the code. `npm run docs` writes them from `dist`; `test/docs.test.ts` fails where they differ.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))

/** Pages that may hold generated parts, and blocks of code that are tested. */
export const pages = [
  'README.md',
  'CONTRIBUTING.md',
  ...readdirSync(join(root, 'docs'), { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.md'))
    .map((path) => `docs/${path.split('\\').join('/')}`)
    .sort(),
]

const code = (text) => `\`${text}\``
const table = (head, rows) => [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n')

/** Generators by name. `from` imports a module of the code by its path in `src`, without extension. */
const generators = {
  sites: async (from) => (await from('sites/index')).sitesMarkdown(),

  'sites-short': async (from) => {
    const { vocabulary } = await from('sites/index')
    const axes = (row) => row.axes.map((axis) => (axis === 'one' ? '1' : axis)).join(', ')
    return table(
      ['site', 'axes', 'what it is'],
      vocabulary.map((row) => [code(row.per === 'layer' ? `${row.name}.L` : row.name), axes(row), row.meaning]),
    )
  },

  edits: async (from) => {
    const { editOps } = await from('sites/index')
    const parameter = ([name, p], row) => {
      const otherwise = p.otherwise === undefined ? '' : `, ${p.otherwise} by default`
      const one = row.oneOf?.includes(name) || p.optional ? '; may be left out' : ''
      return `${code(name)}: ${p.kind}, ${p.doc}${otherwise}${one}`
    }
    const rows = Object.entries(editOps).map(([name, row]) => [
      code(name),
      row.doc,
      Object.entries(row.params)
        .map((p) => parameter(p, row))
        .join('<br>') || 'none',
    ])
    return table(['op', 'what it does', 'parameters'], rows)
  },

  families: async (from) => {
    const { families } = await from('models/families/index')
    return Object.keys(families).sort().map(code).join(', ')
  },

  methods: async (from) => {
    const { steeringMethods } = await from('steer/index')
    return table(
      ['method', 'what it does', 'examples'],
      Object.entries(steeringMethods).map(([name, m]) => [code(name), m.doc, m.paired ? 'in pairs' : 'any number on each side']),
    )
  },

  papers: async (from) => {
    const { allPapers } = await from('papers/index')
    const number = (v) => (typeof v === 'number' ? String(Number(v.toPrecision(3))) : '–')
    const rows = (await allPapers()).map((p) => {
      const path = join(root, 'docs', 'papers', `${p.slug}.json`)
      const last = existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : undefined
      const verdict = last ? `**${last.verdict}**. ${last.reason}` : 'not run in full yet'
      return [
        `${code(p.slug)}<br>${p.title}`,
        p.question,
        `${p.claim.metric}: wanted ${number(p.claim.threshold)}, ours ${number(last?.ours)}`,
        verdict,
        last
          ? `${code(last.command)}<br>seeds ${last.seeds.join(', ')}; ${last.model}; ${last.precision}; ${last.machine}`
          : code(`actlens paper run ${p.slug}`),
      ]
    })
    return table(['paper', 'question', 'claim', 'verdict', 'made by'], rows)
  },

  cli: async (from) => (await (await from('cli/markdown')).cliMarkdown()).trimEnd(),

  ops: async (from) => {
    // The ops enter their table when the engine is loaded.
    await from('tensor/index')
    return (await from('tensor/ops/docs')).opsMarkdown().trimEnd()
  },
}

/** A page with its generated parts filled in. */
export async function filled(text, from) {
  const parts = /(<!-- generated: ([\w-]+) -->\n)[\s\S]*?(\n?<!-- end -->)/g
  let out = ''
  let at = 0
  for (const part of text.matchAll(parts)) {
    const [whole, start, name] = part
    if (!Object.hasOwn(generators, name))
      throw new Error(`There is no generator '${name}'; known are ${Object.keys(generators).join(', ')}.`)
    out += `${text.slice(at, part.index)}${start}\n${await generators[name](from)}\n\n<!-- end -->`
    at = part.index + whole.length
  }
  return out + text.slice(at)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const from = (path) => import(pathToFileURL(join(root, 'dist', `${path}.js`)).href)
  if (!existsSync(join(root, 'dist'))) throw new Error('There is no dist; run npm run build first.')
  for (const page of pages) {
    const before = readFileSync(join(root, page), 'utf8')
    const after = await filled(before, from)
    if (after !== before) {
      writeFileSync(join(root, page), after)
      console.error(`wrote ${page}`)
    }
  }
}
