/** @file Runs commands for the set-up: quiet while they succeed, in full when they fail, ended with us when we are interrupted. */
import { spawn } from 'node:child_process'
import { Interrupted, SetUpError } from './say.mjs'

/**
 * Runs a command to its end.
 * @param {string[]} command
 * @param {{ cwd: string, signal: AbortSignal, shell?: boolean, failure: string }} options `failure` is the sentence when it does not succeed
 */
export async function run([file, ...args], { cwd, signal, shell = false, failure }) {
  const child = spawn(file, args, {
    cwd,
    shell,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, NO_COLOR: '1' },
    windowsHide: true,
  })
  let printed = ''
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text) => {
      printed += text
    })
  const end = () => child.kill('SIGTERM')
  signal.addEventListener('abort', end)
  const code = await new Promise((resolve) => {
    child.on('error', (error) => {
      printed += error.code === 'ENOENT' ? `${file} was not found.` : error.message
      resolve(1)
    })
    child.on('close', (value) => resolve(value ?? 1))
  })
  signal.removeEventListener('abort', end)
  if (signal.aborted) throw new Interrupted()
  if (code !== 0) throw new SetUpError(`${failure}\n\n${printed.trim()}\n`)
}

/** The user's npm: the one that runs us, else the one on the PATH. */
export function npm() {
  const told = process.env.npm_execpath
  if (told && /[\\/]npm-cli\.c?js$/.test(told)) return { command: [process.execPath, told], shell: false }
  return process.platform === 'win32' ? { command: ['npm.cmd'], shell: true } : { command: ['npm'], shell: false }
}

/**
 * Does the work with a signal that aborts on Ctrl-C, a closed terminal or a polite kill.
 * @template T
 * @param {(signal: AbortSignal) => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function interruptible(work) {
  const controller = new AbortController()
  const abort = (name) => controller.abort(name)
  const names = ['SIGINT', 'SIGTERM', 'SIGHUP']
  for (const name of names) process.on(name, abort)
  try {
    return await work(controller.signal)
  } catch (error) {
    throw controller.signal.aborted ? new Interrupted(controller.signal.reason) : error
  } finally {
    for (const name of names) process.off(name, abort)
  }
}
