/** @file Steering: methods by their table, examples from files, divergence from the plain model, vectors as files. */
import { randomBytes } from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { UsageError } from '../base/errors.ts'
import { columnOf, tableOf, usualColumns } from '../probe/index.ts'
import { divergence, type SteeringVector, saveVector, steeringMethods, type VectorFormat, vectorFormats } from '../steer/index.ts'
import { pieceOf } from './lens.ts'
import { editedModel, idsOf, rounded } from './look.ts'
import type { BodyOf, DivergenceAnswer, ExamplesAnswer, MethodsAnswer } from './protocol.ts'
import type { Held } from './registry.ts'

const extensions: Readonly<Record<VectorFormat, string>> = {
  safetensors: 'safetensors',
  gguf: 'gguf',
  neuronpedia: 'json',
  easysteer: 'json',
}

/** How vectors can be made and written. */
export function methodsAnswer(): MethodsAnswer {
  return {
    methods: Object.entries(steeringMethods).map(([name, { doc, paired, options }]) => ({
      name: name as keyof typeof steeringMethods,
      doc,
      paired,
      options,
    })),
    formats: Object.entries(vectorFormats).map(([name, { doc }]) => ({
      name: name as VectorFormat,
      doc,
      extension: extensions[name as VectorFormat],
    })),
  }
}

/** The sides of a file of examples: two columns `positive` and `negative`, or texts with a label of two values, the second one wanted. */
export function examplesAnswer({ data }: BodyOf<'examples'>): ExamplesAnswer {
  const table = tableOf(data, 'The examples')
  const filled = (values: readonly string[]) => values.filter((v) => v.trim() !== '')
  if (['positive', 'negative'].every((name) => table.columns.includes(name)))
    return {
      positive: filled(columnOf(table, 'positive', [], 'positive').values),
      negative: filled(columnOf(table, 'negative', [], 'negative').values),
      names: ['positive', 'negative'],
    }
  const texts = columnOf(table, undefined, usualColumns.text, 'text').values
  const labels = columnOf(table, undefined, usualColumns.label, 'label').values
  const [negative, positive, ...more] = [...new Set(labels)].sort()
  if (negative === undefined || positive === undefined || more.length > 0)
    throw new UsageError(
      `A direction is a contrast of two sides, but the label has ${new Set(labels).size} values; give a file with two, or with columns 'positive' and 'negative'.`,
    )
  const side = (label: string) => texts.filter((t, i) => labels[i] === label && t.trim() !== '')
  return { positive: side(positive), negative: side(negative), names: [positive, negative] }
}

/** How far the edits take each next-token distribution of a text from the plain model's. */
export async function divergenceAnswer(held: Held, body: BodyOf<'divergence'>, signal: AbortSignal): Promise<DivergenceAnswer> {
  const { model } = held
  const ids = idsOf(model, body)
  const edited = await editedModel(held, body.edits)
  const { klByToken, kl } = await held.queue.run(() => divergence(model.plain, edited, { ids }, { signal }), signal)
  const [row] = klByToken
  return {
    ids,
    pieces: ids.map((id) => pieceOf(model, id)),
    kl: ids.map((_, n) => (n === 0 ? null : rounded(row?.[n - 1] ?? 0))),
    mean: rounded(kl),
    unfired: [],
  }
}

/** The vectors that edits add, each at its strength, as one file. */
export async function vectorFile(held: Held, { edits, format }: BodyOf<'vector-file'>): Promise<Uint8Array<ArrayBuffer>> {
  const parts: SteeringVector[] = []
  for (const edit of edits) {
    const vector = edit.op === 'add' ? await held.vectors.steering(edit, held.queue) : undefined
    if (!vector)
      throw new UsageError(
        `The edit ${edit.op} at ${edit.site} adds no vector, so a vector file cannot hold it; switch it off, or save edits.json.`,
      )
    const { scale = 1 } = edit.params as { scale?: number }
    if (scale !== 0) parts.push(vector.times(scale))
  }
  const [first, ...rest] = parts
  if (!first) throw new UsageError('No vector is on, so there is nothing to write; switch one on and give it a strength.')
  const sum = rest.reduce((a, b) => a.plus(b), first)
  const folder = await mkdtemp(join(tmpdir(), 'actlens-vector-'))
  try {
    const path = join(folder, `${randomBytes(4).toString('hex')}.${extensions[format]}`)
    await saveVector(path, sum, { format })
    return new Uint8Array(await readFile(path))
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}
