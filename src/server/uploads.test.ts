import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { encodeSafetensors } from '../models/formats/index.ts'
import { load } from '../run/index.ts'
import { tinyLlama, tinyTensors } from '../run/testing.ts'
import type { ErrorAnswer, ModelLine, UploadAnswer } from './protocol.ts'
import { linesOf, tinyServer } from './testing.ts'

let folder: string
let server: Awaited<ReturnType<typeof tinyServer>>
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'actlens-uploads-test-'))
  server = await tinyServer({
    uploads: folder,
    load: (id, work) => load(id === 'tiny' ? join(folder, 'tiny') : id, { ...work, threads: 1 }),
  })
  await writeFile(join(folder, 'note.txt'), '')
})
afterAll(async () => {
  await server.close()
  await rm(folder, { recursive: true, force: true })
})

const send = async (query: string, body: BodyInit) =>
  (await (await server.get(`/api/upload?${query}`, { method: 'POST', body })).json()) as UploadAnswer & Partial<ErrorAnswer>

it('files of a model that are dropped into the page are loaded by the usual readers', async () => {
  const { group } = await send('name=config.json', JSON.stringify(tinyLlama))
  const bytes = encodeSafetensors(tinyTensors(tinyLlama))
  const second = await send(`name=model.safetensors&group=${group}`, bytes)
  expect(second.bytes).toBe(bytes.byteLength)
  expect(await readFile(second.path)).toEqual(Buffer.from(bytes))
  const lines = await linesOf<ModelLine>(await server.post('model', { model: second.folder }))
  expect(lines.at(-1)).toMatchObject({ type: 'model', model: { family: 'llama' } })
})

it('a file that is no model is told by the reader, a strange name is refused, nothing half-written stays', async () => {
  const broken = await send('name=broken.gguf', 'GGUF but not really')
  const lines = await linesOf<ModelLine>(await server.post('model', { model: broken.path }))
  expect((lines.at(-1) as unknown as ErrorAnswer).error.message).toContain('broken.gguf')
  for (const name of ['../evil', '.hidden', 'a/b', ''])
    expect((await send(`name=${encodeURIComponent(name)}`, 'x')).error?.message).toContain('no name for a model file')
  expect((await send('name=a.bin&group=..', 'x')).error?.message).toContain('hexadecimal')
  const all = await readdir(folder, { recursive: true })
  expect(all.filter((n) => n.endsWith('.tmp'))).toEqual([])
})
