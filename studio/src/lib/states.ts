/** @file States of rooms on their way into a link and back: a value is written where it is not the usual one. */
import { type RoomStates, stateChoices, usualStates } from '../rooms/states.ts'

type Value = string | number | boolean
type Loose = Record<string, Record<string, Value>>

/** The states of all rooms as a newcomer finds them. */
export const freshStates = (): RoomStates => structuredClone(usualStates)

/** Writes what is not usual, as `room.name=value`. */
export function writeStates(states: RoomStates, out: URLSearchParams): void {
  for (const [room, usual] of Object.entries(usualStates as Loose))
    for (const [name, value] of Object.entries(usual)) {
      const now = (states as Loose)[room]?.[name]
      if (now !== undefined && now !== value) out.set(`${room}.${name}`, linkable(`${room}.${name}`, String(now)))
    }
}

/** Reads states; what is not there, or does not fit, is as a newcomer finds it. */
export function readStates(given: URLSearchParams): RoomStates {
  const states = freshStates()
  for (const [room, usual] of Object.entries(states as Loose))
    for (const [name, value] of Object.entries(usual)) {
      const text = unfolded(given.get(`${room}.${name}`))
      const read = text === null ? undefined : parsed(text, value, stateChoices[`${room}.${name}`])
      if (read !== undefined) usual[name] = read
    }
  return states
}

function parsed(text: string, usual: Value, choices: readonly string[] | undefined): Value | undefined {
  if (typeof usual === 'string') return choices && !choices.includes(text) ? undefined : text
  if (typeof usual === 'boolean') return text === 'true' ? true : text === 'false' ? false : undefined
  const number = Number(text)
  return text.trim() !== '' && Number.isFinite(number) ? number : undefined
}

/** Characters that a value in the link may have; a longer one is kept by the browser tab, and the link names it. */
const longest = 8000
const kept = 'kept:'
const known = new Map<string, { readonly text: string; readonly name: string }>()

/** Whether a text is too long for the link, so that the link shows it in this tab only. */
export const tooLong = (text: string) => text.length > longest

function linkable(key: string, text: string): string {
  if (!tooLong(text)) return text
  const before = known.get(key)
  if (before?.text === text) return before.name
  // FNV-1a; it tells texts of one tab apart, no more.
  let hash = 0x811c9dc5
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193)
  const name = `${kept}${(hash >>> 0).toString(16)}-${text.length}`
  known.set(key, { text, name })
  try {
    globalThis.sessionStorage?.setItem(name, text)
  } catch {
    // Storage that is full or forbidden costs the text at a reload, nothing else.
  }
  return name
}

function unfolded(text: string | null): string | null {
  if (!text?.startsWith(kept)) return text
  return [...known.values()].find((k) => k.name === text)?.text ?? globalThis.sessionStorage?.getItem(text) ?? null
}
