/** @file "Copy as code" for patching and attribution. */
import type { EditData, VectorRecipe } from '../../../src/server/protocol.ts'
import type { PairState, RoomStates } from '../rooms/states.ts'
import { type Code, editsNote, editsOption, input, modelName, quoted, Script, shell } from './code.ts'
import { metrics } from './pair.svelte.ts'

/** What the code is about. */
export interface PairSubject extends PairState {
  readonly model: string
  readonly edits: readonly EditData[]
}

const needsOf = (s: PairSubject) => metrics[s.metric]?.needs ?? []

function pairOptions(script: Script, s: PairSubject): string[] {
  const needs = needsOf(s)
  if (needs.length > 0) script.imports.add('oneToken')
  const tokens = needs.map((n) => `, ${n}: oneToken(model, ${quoted(s[n])}, '${n}')`).join('')
  return [
    `  clean: ${input(s.clean)},`,
    `  corrupt: ${input(s.corrupt)},`,
    `  metric: { kind: ${quoted(s.metric)}${tokens} },`,
    ...(s.direction === 'denoise' ? [] : [`  direction: ${quoted(s.direction)},`]),
  ]
}

function pairFlags(s: PairSubject): string {
  const tokens = needsOf(s).map((n) => ` --${n} ${shell(s[n])}`)
  const metric = s.metric === 'logit-difference' ? '' : ` --metric ${s.metric}`
  const direction = s.direction === 'denoise' ? '' : ` --direction ${s.direction}`
  return `${shell(modelName(s.model))} --clean ${shell(s.clean)} --corrupt ${shell(s.corrupt)}${tokens.join('')}${metric}${direction}`
}

/** Code of a patching sweep. */
export function patchCode(s: PairSubject, sites: string, positions: string): Code {
  const script = new Script(s.model)
  script.imports.add('patch')
  const model = script.edited(s.edits)
  script.lines.push(
    `const { tables, metric } = await patch(${model}, {`,
    ...pairOptions(script, s),
    `  sites: ${quoted(sites)},`,
    ...(positions === 'each' ? [] : [`  positions: ${quoted(positions)},`]),
    '})',
    `console.log(metric, tables[${quoted(sites)}])`,
  )
  return {
    library: String(script),
    command: `${editsNote(s.edits)}actlens patch ${pairFlags(s)} --sites ${shell(sites)}${positions === 'each' ? '' : ` --positions ${positions}`}${editsOption(s.edits)} --out patch.safetensors`,
  }
}

/** Code of one patched run. */
export function patchedRunCode(s: PairSubject, place: { site: string; position?: number; head?: number }): Code {
  const script = new Script(s.model)
  script.imports.add('patchedRun')
  const model = script.edited(s.edits)
  const at = [
    `site: ${quoted(place.site)}`,
    ...(place.position === undefined ? [] : [`position: ${place.position}`]),
    ...(place.head === undefined ? [] : [`head: ${place.head}`]),
  ].join(', ')
  script.lines.push(
    `const { clean, corrupt, patched } = await patchedRun(${model}, {`,
    `  clean: ${input(s.clean)},`,
    `  corrupt: ${input(s.corrupt)},`,
    ...(s.direction === 'denoise' ? [] : [`  direction: ${quoted(s.direction)},`]),
    `  ${at},`,
    '})',
  )
  return { library: String(script), command: patchCode(s, place.site, place.position === undefined ? 'all' : 'each').command }
}

/** Code of an attribution. */
export function attributeCode(s: PairSubject, sites: readonly string[], method: string, steps: number): Code {
  const script = new Script(s.model)
  script.imports.add('attribute')
  const model = script.edited(s.edits)
  const integrated = method === 'integrated'
  script.lines.push(
    `const { tables, completeness } = await attribute(${model}, {`,
    ...pairOptions(script, s),
    `  sites: [${sites.map(quoted).join(', ')}],`,
    ...(integrated ? [`  method: 'integrated',`, `  steps: ${steps},`] : []),
    '})',
    'console.log(tables, completeness)',
  )
  return {
    library: String(script),
    command: `${editsNote(s.edits)}actlens attribute ${pairFlags(s)}${sites.map((p) => ` --sites ${shell(p)}`).join('')}${integrated ? ` --method integrated --steps ${steps}` : ''}${editsOption(s.edits)} --out attribution.safetensors`,
  }
}

/** Code of the edges. */
export function edgesCode(s: PairSubject): Code {
  const script = new Script(s.model)
  script.imports.add('attributeEdges')
  const model = script.edited(s.edits)
  script.lines.push(
    `const { senders, receivers, scores } = await attributeEdges(${model}, {`,
    ...pairOptions(script, s),
    '})',
    'console.log(senders, receivers, scores)',
  )
  return {
    library: String(script),
    command: `${editsNote(s.edits)}actlens attribute ${pairFlags(s)} --sites 'resid_pre.*' --method edge${editsOption(s.edits)} --out edges.safetensors`,
  }
}

/** Code of a direct logit attribution. */
export function componentsCode(s: PairSubject): Code {
  const script = new Script(s.model)
  for (const name of ['attributeLogits', 'oneToken']) script.imports.add(name)
  const model = script.edited(s.edits)
  const wrong = s.wrong === '' ? '' : `, wrong: oneToken(model, ${quoted(s.wrong)}, 'wrong')`
  script.lines.push(
    `const options = { answer: oneToken(model, ${quoted(s.answer)}, 'answer')${wrong} }`,
    `const parts = await attributeLogits(${model}, ${input(s.clean)}, options)`,
    `const heads = await attributeLogits(${model}, ${input(s.clean)}, { ...options, by: 'heads' })`,
    'console.log(parts.labels, parts.values, heads.labels, heads.values)',
  )
  return {
    library: String(script),
    command: `# the parts are made by the library; the command line gives the metric and its attribution to sites\nactlens attribute ${pairFlags(s)} --sites 'z.*'${editsOption(s.edits)} --out heads.safetensors`,
  }
}

/** Code of a probing study. */
export function probeCode(
  s: { readonly model: string; readonly edits: readonly EditData[] },
  { kind, position, site, data }: RoomStates['probe'],
): Code {
  const script = new Script(s.model)
  const model = script.edited(s.edits)
  const file = /^\uFEFF?\s*\{/.test(data) ? 'texts.jsonl' : data.split('\n', 1)[0]?.includes('\t') ? 'texts.tsv' : 'texts.csv'
  script.lines.push(
    `const table = tableOf(readFileSync('${file}', 'utf8'), '${file}')`,
    `const { sites } = await probe(${model}, {`,
    "  texts: columnOf(table, undefined, usualColumns.text, 'text').values,",
    "  labels: columnOf(table, undefined, usualColumns.label, 'label').values,",
    `  site: '${site}.*',`,
    `  kind: '${kind}',`,
    `  position: '${position}',`,
    '})',
    'for (const { site, scores, controls } of sites) console.log(site, scores, controls)',
  )
  return {
    library: `import { readFileSync } from 'node:fs'\nimport { columnOf, probe, tableOf, usualColumns } from 'actlens/probe'\n${String(script)}`,
    command: `${editsNote(s.edits)}# ${file}: the labelled texts of this view\nactlens probe ${shell(modelName(s.model))} --data ${file} --site '${site}.*' --kind ${kind} --position ${position}${editsOption(s.edits)} --out probes.safetensors`,
  }
}

/** Code of a capture. */
export function captureCode(
  s: { readonly model: string; readonly edits: readonly EditData[] },
  sites: string,
  dtype: string,
  file: string,
): Code {
  const script = new Script(s.model)
  script.imports.add('capture')
  const model = script.edited(s.edits)
  script.lines.push(
    `const { manifest } = await capture(${model}, { data: { path: ${quoted(file)} }, sites: ${quoted(sites)}, dtype: ${quoted(dtype)}, out: 'activations' })`,
    'console.log(manifest.tokens, manifest.shards)',
  )
  return {
    library: String(script),
    command: `${editsNote(s.edits)}actlens capture ${shell(modelName(s.model))} --data ${shell(file)} --sites ${shell(sites)} --dtype ${dtype}${editsOption(s.edits)} --out activations`,
  }
}

/** Code of a search for contexts. */
export function contextsCode(
  s: { readonly model: string; readonly edits: readonly EditData[] },
  site: string,
  along: number | VectorRecipe,
  file: string,
): Code {
  const script = new Script(s.model)
  script.imports.add('activationStatistics')
  const probing = typeof along === 'number' ? `neuron: ${along}` : `vector: ${script.vector(along)}`
  const model = script.edited(s.edits)
  script.lines.push(
    `const found = await activationStatistics(${model}, {`,
    `  data: { path: ${quoted(file)} },`,
    `  sites: ${quoted(site)},`,
    `  contexts: { ${quoted(site)}: [{ name: 'asked', ${probing} }] },`,
    '})',
    `console.log(found.get(${quoted(site)}).contexts.get('asked'))`,
  )
  return {
    library: String(script),
    command: `# the activations from which the strongest contexts are taken\n${captureCode(s, site, 'f32', file).command}`,
  }
}
