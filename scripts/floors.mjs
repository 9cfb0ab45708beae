/**
 * @file The floors of `src/`, lowest first. The linter's overrides derive from this table:
 * `node scripts/floors.mjs` writes them to biome.floors.json, and `test/floors.test.ts` fails when they differ.
 */
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

/** A floor imports from itself, its neighbours on the same line, and the lines before. */
export const floors = [
  ['base'],
  ['plot', 'tensor'],
  ['nn'],
  ['models'],
  ['sites'],
  ['run'],
  ['explore', 'probe', 'decompose', 'steer', 'attack', 'transfer', 'compress', 'vision'],
  ['papers'],
  ['cli', 'server', 'web'],
]

/** The folder whose files alone may import ONNX Runtime. */
export const runtimeFolder = 'src/tensor/runtime'

const runtime = {
  group: ['onnxruntime-*', 'onnxruntime-*/**'],
  message: `Only ${runtimeFolder} touches ONNX Runtime; ask it through getRuntime().`,
}
const self = { group: ['actlens', 'actlens/**'], message: 'Inside src, import files by their path.' }

/** Overrides of the linter. For a file that several match, the last one holds. */
export function overrides() {
  const rule = (folder, patterns) => ({
    includes: [`${folder}/**`],
    linter: { rules: { style: { noRestrictedImports: { level: 'error', options: { patterns } } } } },
  })
  const floor = (name, level) => {
    const above = floors.slice(level + 1).flat()
    const group = above.map((higher) => `**/../${higher}/**`)
    return above.length > 0
      ? [{ group, message: `src/${name} is a floor below: it imports only from itself and the floors under it.` }]
      : []
  }
  return [
    rule('src', [runtime, self]),
    ...floors.flatMap((names, level) => names.map((name) => rule(`src/${name}`, [...floor(name, level), runtime, self]))),
    rule(runtimeFolder, [...floor('tensor', 1), self]),
  ]
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const path = fileURLToPath(new URL('../biome.floors.json', import.meta.url))
  writeFileSync(path, `${JSON.stringify({ overrides: overrides() })}\n`)
}
