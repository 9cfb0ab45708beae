/** @file "Copy as code": the library call and the command line that give what a view shows. */
import type { EditData, VectorRecipe } from '../../../src/server/protocol.ts'
import type { GridKind } from './view.ts'

/** Share of the probability from which stories are drawn. */
export const storyTopP = 0.95

/** Code for a view. */
export interface Code {
  readonly library: string
  readonly command: string
}

/** What code is about: a text on a model under edits. */
export interface Subject {
  readonly model: string
  readonly text: string
  readonly edits: readonly EditData[]
}

/** A text as a literal of a program. */
export const quoted = (text: string) => `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'").replaceAll('\n', '\\n')}'`
/** A text as a word of a command. */
export const shell = (text: string) => (/^[\w./:@,=+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`)
/** A text, or ids where the text says `ids:5,6,7`, as a run takes it. */
export const input = (text: string) => {
  const ids = /^ids:([\d,\s]+)$/.exec(text)?.[1]
  return ids ? `{ ids: [${ids.split(',').join(', ')}] }` : quoted(text)
}
/** The model as a command names it. */
export const modelName = (model: string) => (model === '' ? 'embedded' : model)

/** A program under construction: imports, and a name for each vector. */
export class Script {
  readonly imports = new Set(['load'])
  readonly lines: string[] = []
  readonly #vectors = new Map<string, string>()

  constructor(model: string) {
    this.lines.push(`const model = await load(${quoted(modelName(model))})`)
  }

  /** The name of the variable that holds the vector of a recipe. */
  vector(recipe: VectorRecipe): string {
    const key = JSON.stringify(recipe)
    const known = this.#vectors.get(key)
    if (known) return known
    const name = this.#vectors.size === 0 ? 'direction' : `direction${this.#vectors.size + 1}`
    this.#vectors.set(key, name)
    if ('difference' in recipe) this.#extracted(name, recipe.difference)
    else if ('file' in recipe) {
      this.imports.add('loadVector')
      this.lines.push(`const ${name} = (await loadVector(${quoted(recipe.file.path)})).at(${quoted(recipe.file.site)})`)
    } else {
      const { text, ids, site, position } = recipe.activation
      const source = text !== undefined ? input(text) : `{ ids: [${ids?.join(', ')}] }`
      this.lines.push(`const ${name} = (await model.run(${source}, { taps: [${quoted(site)}] })).taps[${quoted(site)}].at(0, ${position})`)
    }
    return name
  }

  #extracted(name: string, recipe: Extract<VectorRecipe, { difference: unknown }>['difference']): void {
    const { positive, negative, site, position = 'mean', method, asLong, ...options } = recipe
    const number = name === 'direction' ? '' : this.#vectors.size
    const texts = (list: readonly string[]) => `[\n${list.map((t) => `    ${quoted(t)},\n`).join('')}  ]`
    const examples = `  positive: ${texts(positive)},\n  negative: ${texts(negative)},\n  site: ${quoted(site)},\n  position: ${typeof position === 'number' ? position : quoted(position)},${position === 'mean' ? '\n  excludeBos: true,' : ''}`
    if (method === undefined) {
      this.imports.add('meanDifference')
      this.lines.push(
        `const made${number} = await meanDifference(model, {\n${examples}\n})`,
        `const ${name} = made${number}.at(${quoted(site)})`,
      )
      return
    }
    this.imports.add('extractVector')
    const own = Object.entries({ method, ...options }).filter(([, v]) => v !== undefined)
    this.lines.push(
      `const examples${number} = {\n${examples}\n}`,
      `const made${number} = await extractVector(model, { ...examples${number}, ${own.map(([k, v]) => `${k}: ${this.#value(v)}`).join(', ')} })`,
    )
    if (asLong)
      this.lines.push(
        '// As long as the difference of the means, so that strengths of methods compare.',
        `const length${number} = (await extractVector(model, examples${number})).norms.get(${quoted(site)})`,
      )
    this.lines.push(`const ${name} = made${number}${asLong ? `.normalized(length${number})` : ''}.at(${quoted(site)})`)
  }

  /** The name of the model under the edits. */
  edited(edits: readonly EditData[]): string {
    if (edits.length === 0) return 'model'
    const items = edits.map((e) => `  ${this.#value(e)},\n`)
    this.lines.push(`const edited = model.with(\n${items.join('')})`)
    return 'edited'
  }

  #value(value: unknown): string {
    if (isRecipe(value)) return this.vector(value)
    if (Array.isArray(value)) return `[${value.map((v) => this.#value(v)).join(', ')}]`
    if (typeof value === 'object' && value !== null)
      return `{ ${Object.entries(value)
        .map(([k, v]) => `${/^[a-z_]\w*$/i.test(k) ? k : quoted(k)}: ${this.#value(v)}`)
        .join(', ')} }`
    return typeof value === 'string' ? quoted(value) : String(value)
  }

  toString(): string {
    return [`import { ${[...this.imports].sort().join(', ')} } from 'actlens'`, '', ...this.lines].join('\n')
  }
}

function isRecipe(value: unknown): value is VectorRecipe {
  return typeof value === 'object' && value !== null && ('difference' in value || 'activation' in value || 'file' in value)
}

/** The option that names the edits file. */
export const editsOption = (edits: readonly EditData[]) => (edits.length > 0 ? ' --edits edits.json' : '')
/** What the command line says about that file. */
export const editsNote = (edits: readonly EditData[]) =>
  edits.length > 0 ? '# edits.json: "Save as edits.json" under "Edits in force"\n' : ''

/** The run may stop at the last tap, but not before an edit that is further on. */
const onlyTaps = (subject: Subject) => (subject.edits.length > 0 ? '' : ', logits: false')

/** Code that writes the story. */
export function storyCode(subject: Subject, options: { maxNewTokens: number; temperature: number; seed: number }): Code {
  const script = new Script(subject.model)
  const model = script.edited(subject.edits)
  // Rows of a batch draw from the streams seed, seed + 1, …; the steered story is the second row.
  const seed = options.seed + (subject.edits.length > 0 ? 1 : 0)
  const sampling = options.temperature > 0 ? `, temperature: ${options.temperature}, topP: ${storyTopP}, seed: ${seed}` : ''
  script.lines.push(
    `for await (const piece of ${model}.generate(${input(subject.text)}, { maxNewTokens: ${options.maxNewTokens}${sampling} }))`,
    '  process.stdout.write(piece)',
  )
  const flags = options.temperature > 0 ? ` --temperature ${options.temperature} --top-p ${storyTopP} --seed ${seed}` : ''
  return {
    library: String(script),
    command: `${editsNote(subject.edits)}actlens generate ${shell(modelName(subject.model))} --prompt ${shell(subject.text)}${editsOption(subject.edits)} --max-new-tokens ${options.maxNewTokens}${flags}`,
  }
}

/** Code that gives the numbers of the grid. */
export function gridCode(subject: Subject, what: GridKind, site: string, vector: VectorRecipe | undefined): Code {
  const script = new Script(subject.model)
  const direction = what === 'cosine' && vector ? script.vector(vector) : undefined
  const model = script.edited(subject.edits)
  const taps = `${site}.*`
  if (what === 'lens') {
    for (const name of ['edit', 'replace']) script.imports.add(name)
    script.lines.push(
      `const { taps } = await ${model}.run(${input(subject.text)}, { taps: [${quoted(taps)}] })`,
      '// What the final norm and the unembedding make of each layer: it is written in front of them.',
      `const last = \`resid_post.\${model.spec.layers - 1}\``,
      "const bypass = edit(last, (_, { read }) => read('embeddings'), { reads: ['embeddings'] })",
      'for (let layer = 0; layer < model.spec.layers; layer++) {',
      `  const through = model.with(replace('embeddings', taps[\`${site}.\${layer}\`].row(0)), bypass)`,
      `  const { logits } = await through.run(${input(subject.text)})`,
      '  console.log(layer, logits.at(0, -1))',
      '}',
    )
  } else {
    script.lines.push(
      `const { taps } = await ${model}.run(${input(subject.text)}, { taps: [${quoted(taps)}]${onlyTaps(subject)} })`,
      ...(direction
        ? [
            'const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0)',
            `const cosine = (a, b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b))`,
            `console.log(cosine(taps[${quoted(`${site}.0`)}].at(0, -1), ${direction}))`,
          ]
        : [`console.log(Math.hypot(...taps[${quoted(`${site}.0`)}].at(0, -1)))`]),
    )
  }
  const source = shell(modelName(subject.model))
  const command =
    what === 'lens'
      ? `actlens lens ${source} --text ${shell(subject.text)} --sites ${shell(taps)} --top 5${editsOption(subject.edits)}`
      : `# the activations that the picture is made of\nactlens run ${source} --text ${shell(subject.text)} --taps ${shell(taps)}${subject.edits.length > 0 ? '' : ' --no-logits'}${editsOption(subject.edits)} --out grid.safetensors`
  return { library: String(script), command: `${editsNote(subject.edits)}${command}` }
}

/** Code that reads one site. */
export function siteCode(subject: Subject, site: string, position: number | undefined): Code {
  const script = new Script(subject.model)
  const model = script.edited(subject.edits)
  script.lines.push(
    `const { taps } = await ${model}.run(${input(subject.text)}, { taps: [${quoted(site)}]${onlyTaps(subject)} })`,
    position === undefined ? `console.log(taps[${quoted(site)}].row(0))` : `console.log(taps[${quoted(site)}].at(0, ${position}))`,
  )
  return {
    library: String(script),
    command: `${editsNote(subject.edits)}actlens run ${shell(modelName(subject.model))} --text ${shell(subject.text)} --taps ${shell(site)}${editsOption(subject.edits)} --out site.safetensors`,
  }
}
