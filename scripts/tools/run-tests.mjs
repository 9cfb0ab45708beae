/** @file Runs the tests and counts them from the runner's own report. */
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { inRoot, root, setUp, told } from '../setup.mjs'
import { say } from './say.mjs'

/**
 * Sets up, runs the tests, prints the line of counts last, and exits as the runner did.
 * @param {string[]} args `--full`, and what else the runner understands
 */
export async function runTests(args) {
  let model = false
  try {
    ;({ model } = await setUp())
  } catch (error) {
    process.exitCode = told(error)
    console.log('0 passed, 1 failed')
    return
  }
  const folder = mkdtempSync(join(tmpdir(), 'actlens-test-'))
  const report = join(folder, 'report.json')
  const code = await vitest(args, report)
  if (!model) say('the tests that need the embedded model were skipped, since it could not be fetched.')
  const counts = existsSync(report) ? countsOf(JSON.parse(readFileSync(report, 'utf8'))) : { passed: 0, failed: 0, skipped: 0 }
  rmSync(folder, { recursive: true, force: true })
  // An error outside of any test fails the run, and the line must not look as if it had not.
  if (code !== 0 && counts.failed === 0) counts.failed = 1
  console.log(`${counts.passed} passed, ${counts.failed} failed${counts.skipped > 0 ? `, ${counts.skipped} skipped` : ''}`)
  process.exitCode = code
}

function vitest(args, report) {
  const full = args.includes('--full')
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`]
  const command = [inRoot('node_modules', 'vitest', 'vitest.mjs'), 'run', ...reporters, ...args.filter((a) => a !== '--full')]
  const child = spawn(process.execPath, command, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...(full ? { ACTLENS_FULL: '1' } : {}) },
  })
  const forward = (signal) => child.kill(signal)
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, forward)
  return new Promise((resolve) => child.on('close', (code) => resolve(code ?? 130)))
}

function countsOf(report) {
  // A file that could not be loaded has no tests, and counts as one that failed.
  const broken = report.testResults.filter((file) => file.status === 'failed' && !file.assertionResults.some((t) => t.status === 'failed'))
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests + broken.length,
    skipped: report.numPendingTests + report.numTodoTests,
  }
}
