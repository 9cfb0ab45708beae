/** @file Runs the user's npm, so that its registry, login and proxy settings hold, and turns its failures into sentences. */

import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { CancelledError, FormatError } from '../../base/errors.ts'
import { systemCode } from '../../base/files.ts'

/** What a run of npm gave. */
export interface NpmRun {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/** Runs npm with these arguments. */
export type RunNpm = (args: readonly string[], signal?: AbortSignal) => Promise<NpmRun>

/** Runs the npm that belongs to the user's Node. */
export const runNpm: RunNpm = (args, signal) => {
  const [command, first, shell] = npmCommand()
  return runCommand(command, [...first, ...args], signal, shell)
}

/** Command, first arguments, and whether it needs a shell (a `.cmd` file on Windows). */
function npmCommand(): [string, string[], boolean] {
  // npm tells scripts that it runs where it is; other package managers set the variable too, for themselves.
  const told = process.env.npm_execpath
  const beside = join(dirname(process.execPath), 'node_modules', 'npm', 'bin', 'npm-cli.js')
  if (told && /[\\/]npm-cli\.c?js$/.test(told)) return [process.execPath, [told], false]
  if (process.platform !== 'win32') return ['npm', [], false]
  return existsSync(beside) ? [process.execPath, [beside], false] : ['npm.cmd', [], true]
}

/** Runs a command to its end and collects what it prints; a missing command and an abort are errors, an exit code is not. */
export function runCommand(command: string, args: readonly string[], signal?: AbortSignal, shell = false): Promise<NpmRun> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, shell ? args.map((arg) => `"${arg}"`) : [...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      windowsHide: true,
      shell,
      ...(signal ? { signal } : {}),
    })
    let stdout = ''
    let stderr = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text
    })
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text
    })
    child.on('error', (error) => {
      if (signal?.aborted) reject(new CancelledError())
      else if (['ENOENT', 'EACCES'].includes(systemCode(error) ?? '')) {
        reject(
          new FormatError(
            'npm was not found, and is needed to fetch this model: install Node.js together with npm, or put npm on the PATH.',
          ),
        )
      } else reject(new FormatError(`npm could not be started: ${error.message}.`, { cause: error }))
    })
    child.on('close', (code) => {
      if (signal?.aborted) reject(new CancelledError())
      else resolve({ code: code ?? 1, stdout, stderr })
    })
  })
}

/** npm waits minutes for a network that is not there; we would rather say so. */
const impatient = ['--fetch-retries=1', '--fetch-retry-mintimeout=1000', '--fetch-retry-maxtimeout=5000']

/** Runs an npm command that prints JSON about the package `spec` and gives the value. */
export async function npmJson(npm: RunNpm, args: readonly string[], spec: string, signal?: AbortSignal): Promise<unknown> {
  const run = await npm([...args, '--json', ...impatient], signal)
  const value = parse(run.stdout)
  if (run.code !== 0 || value === undefined) throw failure(run, value, spec)
  return value
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

const noNetwork =
  'there is no network, or the registry cannot be reached. Check the connection (and the proxy settings of npm) and try again.'
const meanings: Readonly<Record<string, string>> = {
  E404: 'the registry has no such package or version. Check the name and the version.',
  ETARGET: 'the registry has no such version. Check the version.',
  E401: "the registry asks for a login. Run 'npm login' first.",
  ENEEDAUTH: "the registry asks for a login. Run 'npm login' first.",
  E403: 'the registry refuses access. Check that your npm login may read this package.',
  ENOTFOUND: noNetwork,
  EAI_AGAIN: noNetwork,
  ECONNREFUSED: noNetwork,
  ECONNRESET: noNetwork,
  ENETUNREACH: noNetwork,
  EHOSTUNREACH: noNetwork,
  ETIMEDOUT: noNetwork,
  ERR_SOCKET_TIMEOUT: noNetwork,
}

function failure(run: NpmRun, value: unknown, spec: string): FormatError {
  const told = (value as { error?: { code?: unknown; summary?: unknown } } | undefined)?.error
  const code = typeof told?.code === 'string' ? told.code : /npm (?:error|ERR!) code (\S+)/.exec(run.stderr)?.[1]
  const summary = typeof told?.summary === 'string' && told.summary !== '' ? told.summary : run.stderr.trim().split('\n').at(-1)
  const meaning = (code && meanings[code]) || `npm failed (exit code ${run.code}): ${summary || 'it printed nothing'}`
  return new FormatError(`Could not fetch ${spec} from npm: ${meaning}`)
}
