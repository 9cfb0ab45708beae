/** @file The vectors among the edits: what each is, and how it changes. */
import type { EditData } from '../../../../src/server/protocol.ts'
import { type Difference, defaultExamples, differenceOf, type StackEdit } from '../../lib/view.ts'

/** An edit that adds a vector, where it stands in the stack. */
export interface MixedVector {
  readonly index: number
  readonly item: StackEdit
  readonly difference: Difference | undefined
  readonly scale: number
}

/** The edits that add a vector. */
export function vectorsOf(edits: readonly StackEdit[]): MixedVector[] {
  return edits.flatMap((item, index) => {
    const { op, params } = item.edit
    if (op !== 'add' || params?.vector === undefined) return []
    const scale = typeof params.scale === 'number' ? params.scale : 1
    return [{ index, item, difference: differenceOf(item.edit), scale }]
  })
}

/** What a vector is called: its first wanted example, its file, or where it was read. */
export function nameOf({ item, difference }: MixedVector): string {
  if (difference) return difference.positive[0] ? `“${difference.positive[0]}”` : 'a direction without examples'
  const vector = item.edit.params?.vector
  if (typeof vector === 'object' && vector !== null && 'file' in vector)
    return (vector as { file: { path: string } }).file.path.split(/[\\/]/).at(-1) as string
  if (typeof vector === 'object' && vector !== null && 'activation' in vector) {
    const { text, position } = (vector as { activation: { text?: string; position: number } }).activation
    return `token ${position}${text ? ` of “${text}”` : ''}`
  }
  return Array.isArray(vector) ? 'a direction given as numbers, as from a probe' : 'a vector'
}

/** The edits with one of them changed. */
export const changed = (edits: readonly StackEdit[], index: number, to: (item: StackEdit) => StackEdit): StackEdit[] =>
  edits.map((e, i) => (i === index ? to(e) : e))

/** An edit with other parameters. */
export const withParams = (edit: EditData, params: Record<string, unknown>): EditData => ({
  ...edit,
  params: { ...edit.params, ...params },
})

/** A contrast that is changed; its site is where it is added, too. */
export function withDifference(edit: EditData, to: Partial<Difference>): EditData {
  const difference = { ...(differenceOf(edit) as Difference), ...to }
  const vector = { difference: Object.fromEntries(Object.entries(difference).filter(([, v]) => v !== undefined)) }
  return { ...edit, site: difference.site, params: { ...edit.params, vector } }
}

/** A second direction to begin with: it is about something else than the first. */
export const otherExamples = {
  positive: [
    'The dragon flew over the dark castle.',
    'A wizard cast a magic spell in the night.',
    'The fairy gave him a wand that could do magic.',
  ],
  negative: ['The boy went to school with his bag.', 'Mom cooked dinner in the kitchen.', 'They walked home and washed their hands.'],
}

/** A new vector at a layer. */
export function newVector(edits: readonly StackEdit[], layer: number): StackEdit {
  const used = vectorsOf(edits).some((v) => v.difference?.positive[0] === defaultExamples.positive[0])
  const { positive, negative } = used ? otherExamples : defaultExamples
  const site = `resid_post.${layer}`
  return { on: true, edit: { op: 'add', site, params: { vector: { difference: { positive, negative, site } }, scale: 1 } } }
}
