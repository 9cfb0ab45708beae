/** @file Stands for `node.ts` in a browser, where every import of it fails with a sentence. */
import { UsageError } from './errors.ts'

throw new UsageError('A browser has no folders and paths: give a URL, a File that was chosen or dropped, or bytes.')
