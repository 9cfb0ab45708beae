/**
 * @file What modules that also run in a browser ask of Node, always by `await import('…/base/node.ts')`. The `browser` table of package.json puts
 * `no-node.ts` in its place, so that no bundle for a browser holds an import of Node's.
 */
import crypto from 'node:crypto'
import fs from 'node:fs'
import fsPromises from 'node:fs/promises'
import module from 'node:module'
import os from 'node:os'
import path from 'node:path'
import * as files from './files.ts'

export { crypto, files, fs, fsPromises, module, os, path }
