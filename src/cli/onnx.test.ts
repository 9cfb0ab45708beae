/** @file The commands on ONNX files, with a file that `export` wrote. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it, vi } from 'vitest'
import { decodeSafetensors } from '../models/formats/index.ts'
import { load } from '../run/index.ts'
import { cli, writeModel } from './testing.ts'

let home: string
const at = (name: string) => join(home, name)
const json = async (...argv: string[]) => {
  const ran = await cli([...argv, '--json'])
  return { ...ran, value: ran.stdout === '' ? undefined : JSON.parse(ran.stdout) }
}
const readTensors = async (path: string) => decodeSafetensors(await readFile(path))
const near = (ours: ArrayLike<number | bigint> | undefined, wanted: ArrayLike<number | bigint> | undefined) => {
  expect(ours?.length).toBe(wanted?.length)
  for (let i = 0; i < (wanted?.length ?? 0); i++) expect(Number(ours?.[i])).toBeCloseTo(Number(wanted?.[i]), 4)
}

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'actlens-cli-onnx-'))
  vi.stubEnv('ACTLENS_HOME', at('home'))
  await writeModel(at('tiny'))
  await writeFile(at('edits.json'), JSON.stringify([{ op: 'scale', site: 'mlp_out.0', params: { factor: 2 } }]))
  const { code, value } = await json('export', at('tiny'), '--edits', at('edits.json'), '--out', at('tiny.onnx'))
  expect(code).toBe(0)
  expect(value).toMatchObject({ inputs: ['input_ids', 'attention_mask'], outputs: ['logits'], opset: 21, edits: 1 })
  expect((await cli(['export', at('tiny'), '--cache', '--out', at('cached.onnx')])).code).toBe(0)
})
afterAll(async () => {
  vi.unstubAllEnvs()
  await rm(home, { recursive: true, force: true })
})

it('run and gradient give of the file what they give of the model with those edits', async () => {
  const shared = ['--text', 'ids:5,6,7,8']
  for (const [model, out, edits] of [
    [at('tiny.onnx'), 'onnx', []],
    [at('tiny'), 'model', ['--edits', at('edits.json')]],
  ] as const) {
    expect((await cli(['run', model, ...shared, ...edits, '--taps', 'resid_post.1', '--out', at(`run.${out}`)])).code).toBe(0)
    const of = ['--of', 'next-token', '--at', 'resid_post.1']
    const ran = await cli(['gradient', model, ...shared, ...edits, ...of, '--out', at(`grad.${out}`)])
    expect([ran.stderr, ran.code]).toEqual([expect.not.stringContaining('rule'), 0])
  }
  for (const [file, names] of [
    ['run', ['logits', 'resid_post.1']],
    ['grad', ['grad.resid_post.1']],
  ] as const) {
    const [ours, wanted] = [await readTensors(at(`${file}.onnx`)), await readTensors(at(`${file}.model`))]
    for (const name of names) near(ours.tensors[name]?.data, wanted.tensors[name]?.data)
  }
})

it('generate writes with the cache of the file what the model writes', async () => {
  const argv = ['--prompt', 'ids:5,6,7', '--max-new-tokens', '5', '--temperature', '0']
  const file = await json('generate', at('cached.onnx'), ...argv)
  const model = await json('generate', at('tiny'), ...argv)
  expect(file.value.tokens).toEqual(model.value.tokens)
  expect(file.value.tokens).toHaveLength(5)
})

it('export writes an ONNX file with further edits, and refuses what would change its inputs', async () => {
  expect((await cli(['export', at('tiny.onnx'), '--edits', at('edits.json'), '--out', at('twice.onnx')])).code).toBe(0)
  const [twice, base] = [await load(at('twice.onnx') as `${string}.onnx`), await load(at('tiny'))]
  const { outputs } = await twice.run(twice.tokenInputs([[5, 6, 7]]))
  const scaled = { op: 'scale', site: 'mlp_out.0', params: { factor: 4 } } as const
  near(outputs.logits?.data as Float32Array, (await base.with(scaled).run({ ids: [5, 6, 7] })).logits.data)
  await twice.dispose()
  await base.dispose()
  const refused = await cli(['export', at('tiny.onnx'), '--cache', '--out', at('x.onnx')])
  expect([refused.code, refused.stderr]).toEqual([2, expect.stringContaining('leave --cache out')])
  expect((await cli(['export', at('tiny'), '--out', at('x.bin')])).code).toBe(2)
})
