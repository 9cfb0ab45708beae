/** Folded gains against the values that PyTorch recorded, for every decoder family. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, it } from 'vitest'
import { families } from '../models/families/index.ts'
import { foldsAndUnfolds } from './transform-testing.ts'

const roots = ['../../test/goldens/', '../../../shared/goldens/'].map((r) => fileURLToPath(new URL(r, import.meta.url)))
const folders = roots
  .filter((root) => existsSync(root))
  .flatMap((root) => readdirSync(root).map((name) => join(root, name)))
  .filter((f) => ['config.json', 'golden.safetensors', 'model.safetensors'].every((n) => existsSync(join(f, n))))
  .filter((f) => Object.hasOwn(families, JSON.parse(readFileSync(join(f, 'config.json'), 'utf8')).model_type))

describe.each(folders)('%s', (folder) => {
  it('keeps the logits of PyTorch when gains are folded, and its weights when that is undone', () => foldsAndUnfolds(folder))
})
