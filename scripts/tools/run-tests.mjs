/** @file Runs the tests and counts them, from what the runner itself reports. */
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { inRoot, root, setUp, told } from '../setup.mjs'
import { endWithParent } from './parent.mjs'
import { say } from './say.mjs'

/**
 * Sets up, runs the tests, prints the line of counts last, and exits as the runner did.
 * @param {string[]} args `--full`, and what else the runner understands
 */
export async function runTests(args) {
  endWithParent()
  let model = false
  try {
    ;({ model } = await setUp())
  } catch (error) {
    process.exitCode = told(error)
    console.log('0 passed, 1 failed')
    return
  }
  const folder = mkdtempSync(join(tmpdir(), 'actlens-test-'))
  const report = join(folder, 'counts.json')
  const code = await vitest(args, report)
  if (!model) say('the tests that need the embedded model were skipped, since it could not be fetched.')
  const { passed, failed, skipped } = existsSync(report) ? JSON.parse(readFileSync(report, 'utf8')) : { passed: 0, failed: 0, skipped: 0 }
  rmSync(folder, { recursive: true, force: true })
  // The runner may fail for other reasons, as when it is interrupted; the line must not look as if it had not.
  console.log(`${passed} passed, ${code === 0 ? failed : Math.max(failed, 1)} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
  process.exitCode = code
}

function vitest(args, report) {
  const full = args.includes('--full')
  const reporters = ['--reporter=default', `--reporter=${inRoot('scripts', 'tools', 'count-reporter.mjs')}`]
  const command = [inRoot('node_modules', 'vitest', 'vitest.mjs'), 'run', ...reporters, ...args.filter((a) => a !== '--full')]
  const child = spawn(process.execPath, command, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ACTLENS_TEST_COUNTS: report, ...(full ? { ACTLENS_FULL: '1' } : {}) },
  })
  const forward = (signal) => child.kill(signal)
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, forward)
  return new Promise((resolve) => child.on('close', (code) => resolve(code ?? 130)))
}
