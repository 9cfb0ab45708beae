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
      if (now !== undefined && now !== value) out.set(`${room}.${name}`, String(now))
    }
}

/** Reads states; what is not there, or does not fit, is as a newcomer finds it. */
export function readStates(given: URLSearchParams): RoomStates {
  const states = freshStates()
  for (const [room, usual] of Object.entries(states as Loose))
    for (const [name, value] of Object.entries(usual)) {
      const text = given.get(`${room}.${name}`)
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
