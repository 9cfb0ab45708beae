/** @file The view: everything that a link must carry to show the same again, and its way into an address and back. */
import type { EditData, VectorRecipe } from '../../../src/server/protocol.ts'
import type { RoomStates } from '../rooms/states.ts'
import { freshStates, readStates, writeStates } from './states.ts'

/** An edit of the stack; one that is off is kept, but not in force. */
export interface StackEdit {
  readonly edit: EditData
  readonly on: boolean
}

/** What the grid shows. */
export type GridKind = 'norm' | 'lens' | 'cosine'
/** Which text is looked into. */
export type LookedText = 'prompt' | 'plain' | 'steered'

/** What a link carries. */
export interface View {
  /** The room that is open; the first one where empty. */
  room: string
  model: string
  text: string
  edits: readonly StackEdit[]
  maxNewTokens: number
  temperature: number
  seed: number
  look: LookedText
  /** The prompt is looked at under the edits. */
  withEdits: boolean
  what: GridKind
  /** Name of the kind of site that the grid shows: `resid_post`. */
  site: string
  /** What cosines are taken to: the steering direction, or another. */
  vector: VectorRecipe | 'steering'
  /** The site and position that are open. */
  at: { readonly site: string; readonly position: number } | undefined
  /** The head whose pattern is large. */
  head: number
  whitespace: boolean
  /** A limit of the grid's scale that was fixed by hand, so that pictures compare. */
  pin: number | undefined
  /** What the other rooms keep. */
  rooms: RoomStates
}

/** Lines that work on a model of children's stories: what to write more like, and less like. */
export const defaultExamples = {
  positive: [
    'She was so sad that she sat down and cried.',
    'They were lost and had a bad day full of fear.',
    'The boy wept because he felt so lonely.',
    'It was the worst day ever and everyone was hurt and sad.',
  ],
  negative: [
    'She was so happy that she smiled and laughed.',
    'They hugged and had a great day full of joy.',
    'The boy cheered because he felt so glad.',
    'It was the best day ever and everyone was proud and happy.',
  ],
}

/** A steering edit: towards some texts and away from others. */
export function steeringEdit(site: string, positive: readonly string[], negative: readonly string[], scale: number): EditData {
  return { op: 'add', site, params: { vector: { difference: { positive: [...positive], negative: [...negative], site } }, scale } }
}

/** The view of a newcomer. */
export function defaultView(): View {
  return {
    room: '',
    model: '',
    text: 'Once upon a time, there was a little girl named Lily.',
    edits: [{ edit: steeringEdit('resid_post.4', defaultExamples.positive, defaultExamples.negative, 1.5), on: true }],
    maxNewTokens: 80,
    temperature: 0,
    seed: 0,
    look: 'prompt',
    withEdits: false,
    what: 'lens',
    site: 'resid_post',
    vector: 'steering',
    at: undefined,
    head: 0,
    whitespace: false,
    pin: undefined,
    rooms: freshStates(),
  }
}

/** A contrast of two sides, and how a direction is made of it. */
export type Difference = Extract<VectorRecipe, { difference: unknown }>['difference']

/** The contrast of which an edit adds the direction, if it is such an edit. */
export function differenceOf(edit: EditData): Difference | undefined {
  const vector = edit.params?.vector
  if (edit.op !== 'add' || typeof vector !== 'object' || vector === null || !('difference' in vector)) return undefined
  const d = (vector as { difference: unknown }).difference
  const ok =
    typeof d === 'object' &&
    d !== null &&
    'site' in d &&
    Array.isArray((d as { positive?: unknown }).positive) &&
    Array.isArray((d as { negative?: unknown }).negative)
  return ok ? (d as Difference) : undefined
}

/** Edits for a model of so many layers: those at deeper ones move to two thirds of its depth, where steering works best. */
export function fitted(edits: readonly StackEdit[], layers: number): readonly StackEdit[] {
  return edits.map((e) => {
    const [, name, layer] = /^([a-z_]+)\.(\d+)$/.exec(e.edit.site) ?? []
    if (layer === undefined || Number(layer) < layers) return e
    const site = `${name}.${Math.floor((2 * layers) / 3)}`
    return { ...e, edit: JSON.parse(JSON.stringify(e.edit).replaceAll(`"${e.edit.site}"`, `"${site}"`)) as EditData }
  })
}

/** The address (behind `#`) of a view; what is as a newcomer finds it is left out. */
export function toLink(view: View): string {
  const usual = defaultView()
  const out = new URLSearchParams()
  const put = (key: string, value: unknown, otherwise: unknown) => {
    const [a, b] = [asText(value), asText(otherwise)]
    if (a !== b) out.set(key, a)
  }
  put('room', view.room, usual.room)
  put('model', view.model, usual.model)
  put('text', view.text, usual.text)
  put(
    'edits',
    view.edits.map((e) => e.edit),
    usual.edits.map((e) => e.edit),
  )
  put('off', view.edits.flatMap((e, i) => (e.on ? [] : [i])).join(), '')
  put('new', view.maxNewTokens, usual.maxNewTokens)
  put('temperature', view.temperature, usual.temperature)
  put('seed', view.seed, usual.seed)
  put('look', view.look, usual.look)
  put('edited', view.withEdits, usual.withEdits)
  put('show', view.what, usual.what)
  put('site', view.site, usual.site)
  put('vector', view.vector, usual.vector)
  put('at', view.at ? `${view.at.site}@${view.at.position}` : '', '')
  put('head', view.head, usual.head)
  put('spaces', view.whitespace, usual.whitespace)
  put('limit', view.pin ?? '', '')
  writeStates(view.rooms, out)
  // Readable where the address allows it.
  return out.toString().replaceAll('%2C', ',').replaceAll('%40', '@').replaceAll('%3A', ':')
}

/** The view of an address; what it does not say, or says wrongly, is as a newcomer finds it. */
export function fromLink(hash: string): View {
  const view = defaultView()
  const given = new URLSearchParams(hash.replace(/^#/, ''))
  const text = (key: string, otherwise: string) => given.get(key) ?? otherwise
  const integer = (key: string, otherwise: number, low: number, high: number) => {
    const value = given.get(key)
    return value !== null && /^-?\d+$/.test(value) && Number(value) >= low && Number(value) <= high ? Number(value) : otherwise
  }
  const one = <T extends string>(key: string, values: readonly T[], otherwise: T): T =>
    values.find((v) => v === given.get(key)) ?? otherwise
  const room = text('room', '')
  view.room = /^[a-z-]*$/.test(room) ? room : ''
  view.model = text('model', view.model)
  view.text = text('text', view.text)
  const edits = parsed(given.get('edits'))
  const off = new Set(text('off', '').split(',').filter(Boolean).map(Number))
  const list = Array.isArray(edits) && edits.every(isEdit) ? edits : view.edits.map((e) => e.edit)
  view.edits = list.map((edit, i) => ({ edit, on: !off.has(i) }))
  view.maxNewTokens = integer('new', view.maxNewTokens, 1, 4096)
  const temperature = Number(given.get('temperature') ?? view.temperature)
  view.temperature = temperature >= 0 && temperature <= 5 ? temperature : view.temperature
  view.seed = integer('seed', view.seed, -(2 ** 31), 2 ** 31)
  view.look = one('look', ['prompt', 'plain', 'steered'], view.look)
  view.withEdits = given.get('edited') === 'true'
  view.what = one('show', ['norm', 'lens', 'cosine'], view.what)
  view.site = text('site', view.site)
  const vector = parsed(given.get('vector'))
  if (typeof vector === 'object' && vector !== null) view.vector = vector as VectorRecipe
  const at = /^([a-z_.0-9]+)@(\d+)$/.exec(text('at', ''))
  if (at) view.at = { site: at[1] as string, position: Number(at[2]) }
  view.head = integer('head', view.head, 0, 4096)
  view.whitespace = given.get('spaces') === 'true'
  const pin = Number(given.get('limit') ?? Number.NaN)
  view.pin = pin > 0 && Number.isFinite(pin) ? pin : undefined
  view.rooms = readStates(given)
  return view
}

function asText(value: unknown): string {
  return typeof value === 'string' ? value : JSON.stringify(value)
}

function parsed(text: string | null): unknown {
  try {
    return text === null ? undefined : JSON.parse(text)
  } catch {
    return undefined
  }
}

/** Whether a value has the form of an edit; the server knows the details. */
export function isEdit(value: unknown): value is EditData {
  const e = value as Partial<EditData> | null
  return typeof e === 'object' && e !== null && typeof e.op === 'string' && typeof e.site === 'string'
}
