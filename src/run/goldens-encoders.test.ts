/** Encoders and encoder–decoders against values and gradients that PyTorch recorded. ACTLENS_GOLDENS names a further folder of such folders. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { families } from '../models/families/index.ts'
import { load } from './open.ts'
import { validate } from './validate.ts'

const shared = fileURLToPath(new URL('../../../shared/goldens/', import.meta.url))
const own = fileURLToPath(new URL('../../test/goldens/', import.meta.url))
const roots = [shared, own, ...(process.env.ACTLENS_GOLDENS ? [process.env.ACTLENS_GOLDENS] : [])]
const folders = roots
  .filter((root) => existsSync(root))
  .flatMap((root) => readdirSync(root).map((name) => ({ name, folder: join(root, name) })))
  .filter(({ folder }) => ['config.json', 'golden.safetensors'].every((f) => existsSync(join(folder, f))))
  .map((f) => ({ ...f, type: JSON.parse(readFileSync(join(f.folder, 'config.json'), 'utf8')).model_type as string }))
  .filter((f) => !Object.hasOwn(families, f.type))

describe.each(folders)('$name', ({ folder }) => {
  it('has the recorded values and gradients', async () => {
    await using model = await load(folder, { threads: 1 })
    const { checks, passed } = await validate(model, folder)
    expect(checks.filter((c) => c.status !== 'pass')).toEqual([])
    expect(passed).toBeGreaterThan(4)
  })
})
