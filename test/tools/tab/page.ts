/** @file What a page of the tests loads: the library as a page gets it, and the work whose figures are compared. */
import * as actlens from '../../../src/web/index.ts'
import * as figures from './figures.ts'

Object.assign(globalThis, { actlens, figures })
