/** @file A reporter of vitest that counts tests into the file named by ACTLENS_TEST_COUNTS, as JSON. */
import { writeFileSync } from 'node:fs'

export default class CountReporter {
  onTestRunEnd(modules, unhandledErrors) {
    // What failed outside of a test, as a file that could not be loaded, counts as one that failed.
    const counts = { passed: 0, failed: unhandledErrors.length, skipped: 0 }
    for (const module of modules) {
      for (const test of module.children.allTests()) {
        const { state } = test.result()
        counts[state === 'pending' ? 'skipped' : state]++
      }
      const suites = [...module.children.allSuites()]
      counts.failed += [module, ...suites].filter((part) => part.errors().length > 0).length
    }
    writeFileSync(process.env.ACTLENS_TEST_COUNTS, JSON.stringify(counts))
  }
}
