/** @file `npm test`: sets the clone up, runs all tests, ends with a line that counts them. With --full the slow ones, too. */
import { checkNode } from './tools/node-version.mjs'

checkNode()

import('./tools/run-tests.mjs').then(({ runTests }) => runTests(process.argv.slice(2)))
