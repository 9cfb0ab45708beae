/** @file From what was thrown to an exit code and a sentence. */
import { CommanderError } from 'commander'
import { ActlensError, CancelledError, EditError, messageOf, SiteError, UsageError } from '../base/errors.ts'
import { exitCodes } from './io.ts'

/** How a failed command ends. */
export interface Failure {
  readonly code: number
  /** Name of the error's class. */
  readonly kind: string
  readonly message: string
}

/** What the user asked for cannot be, whatever the state of the machine. */
const usageErrors = [UsageError, EditError, SiteError]

/** The exit code and sentence of anything thrown; `command` is named in the hint after wrong options. */
export function failureOf(error: unknown, command?: string): Failure {
  if (error instanceof CommanderError)
    return { code: exitCodes.usage, kind: 'UsageError', message: `${sentence(error.message)} ${helpHint(command)}` }
  if (error instanceof CancelledError)
    return { code: exitCodes.interrupted, kind: error.name, message: 'Interrupted; what was finished is kept.' }
  if (usageErrors.some((Kind) => error instanceof Kind))
    return { code: exitCodes.usage, kind: (error as Error).name, message: messageOf(error) }
  if (error instanceof ActlensError) return { code: exitCodes.failed, kind: error.name, message: messageOf(error) }
  const name = error instanceof Error ? error.name : 'Error'
  return {
    code: exitCodes.failed,
    kind: name,
    message: `This should not have happened: ${messageOf(error)} (${name}). Run it again with --debug and report what it prints.`,
  }
}

/** Where the help of a command is. */
export function helpHint(command?: string): string {
  return `See 'actlens ${command ? `${command} ` : ''}--help'.`
}

/** Commander's messages as sentences: `error: unknown option '--x'\n(Did you mean --y?)`. */
function sentence(message: string): string {
  const [first = '', ...rest] = message.replace(/^error: /, '').split('\n')
  const text = first.charAt(0).toUpperCase() + first.slice(1)
  return [/[.?!]$/.test(text) ? text : `${text}.`, ...rest.map((r) => r.replace(/^\((.*)\)$/, '$1'))].join(' ').trim()
}
