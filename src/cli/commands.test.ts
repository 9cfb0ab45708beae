import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import type { NDArray } from '../base/types.ts'
import { decodeSafetensors, writeSafetensors } from '../models/formats/index.ts'
import { load } from '../run/index.ts'
import { cli, float32, int64, smallLlama, writeModel, writeTokenizer } from './testing.ts'

let home: string
const at = (name: string) => join(home, name)
const json = async (...argv: string[]) => {
  const ran = await cli([...argv, '--json'])
  return { ...ran, value: JSON.parse(ran.stdout) }
}
const readTensors = async (path: string) => decodeSafetensors(await readFile(path))

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'actlens-cli-'))
  vi.stubEnv('ACTLENS_HOME', at('home'))
  await writeModel(at('tiny'))
  await writeModel(at('words'))
  await writeTokenizer(at('words'))
  await writeModel(at('long'), { ...smallLlama, max_position_embeddings: 4096 })
})
afterAll(async () => {
  vi.unstubAllEnvs()
  await rm(home, { recursive: true, force: true })
})

describe('sites', () => {
  it('gives every site with axes, shape and aliases, or the reason why it is missing', async () => {
    const { value } = await json('sites', at('tiny'))
    expect(value).toMatchObject({ model: at('tiny'), family: 'llama' })
    const site = (name: string) => value.sites.find((s: { site: string }) => s.site === name)
    expect(site('resid_post.1')).toMatchObject({ axes: ['batch', 'pos', 'd_model'], shape: ['batch', 'pos', 32] })
    expect(site('resid_post.1').aliases).toContain('blocks.1.hook_resid_post')
    expect(site('pos_embeddings').absent).toMatch(/rotary/)
    expect(site('resid_post.1')).not.toHaveProperty('absent')
  })

  it('prints one line for all layers', async () => {
    const { stdout } = await cli(['sites', at('tiny')])
    expect(stdout).toMatch(/^resid_post\.\{0\.\.1\} +\[batch, pos, d_model\] +\[batch, pos, 32\] +blocks\.L\.hook_resid_post/m)
    expect(stdout).toMatch(/^pos_embeddings .*missing: /m)
  })
})

describe('run', () => {
  it('stores what the library computes, under canonical names, with inputs and a record', async () => {
    const out = at('out.safetensors')
    const edits = at('edits.json')
    await writeSafetensors(at('v.safetensors'), { v: float32(new Array(32).fill(0.5)) })
    await writeFile(
      edits,
      JSON.stringify([{ op: 'add', site: 'blocks.0.hook_resid_post', params: { vector: { file: 'v.safetensors' }, scale: 2 } }]),
    )
    const argv = ['run', at('tiny'), '--text', 'ids:5,6,7', '--text', 'ids:9', '--taps', 'resid_post.{0,1},blocks.1.attn.hook_pattern']
    const { value, code } = await json(...argv, '--taps', 'q.0', '--edits', edits, '--out', out)
    expect(code).toBe(0)
    const { tensors, metadata } = await readTensors(out)
    expect(Object.keys(tensors).sort()).toEqual([
      'attention_mask',
      'attn_probs.1',
      'input_ids',
      'logits',
      'q.0',
      'resid_post.0',
      'resid_post.1',
    ])
    expect(tensors.attention_mask).toMatchObject({ dtype: 'int64', shape: [2, 3], data: BigInt64Array.of(1n, 1n, 1n, 1n, 0n, 0n) })
    expect(tensors.input_ids?.data).toEqual(BigInt64Array.of(5n, 6n, 7n, 9n, 0n, 0n))
    const model = await load(at('tiny'), { threads: 1 })
    const steered = model.with({ op: 'add', site: 'resid_post.0', params: { vector: new Float32Array(32).fill(1) } })
    const want = await steered.run({ rows: [[5, 6, 7], [9]] }, { taps: ['resid_post.1', 'attn_probs.1'] })
    expect(tensors['resid_post.1']).toMatchObject({ dtype: 'float32', shape: [2, 3, 32] })
    expect(tensors['attn_probs.1']?.shape).toEqual([2, 4, 3, 3])
    expect(tensors['resid_post.1']?.data).toEqual(want.taps['resid_post.1']?.data)
    expect(tensors.logits?.data).toEqual(want.logits.data)
    const record = JSON.parse(metadata.actlens as string)
    expect(record).toMatchObject({ model: { id: at('tiny'), hash: await model.origin.hash() }, precision: 'f32', editsFile: edits })
    expect(record.edits).toMatchObject([{ op: 'add', site: 'blocks.0.hook_resid_post', params: { vector: { shape: [32] }, scale: 2 } }])
    expect(record.versions).toMatchObject({ node: process.version })
    const info = value.tensors.find((t: { site: string }) => t.site === 'resid_post.1')
    const seen = [...(want.taps['resid_post.1']?.row(0).data ?? []), ...(want.taps['resid_post.1']?.row(1).data ?? [])]
    expect(info.mean).toBeCloseTo(seen.reduce((a, b) => a + b) / seen.length, 6)
    expect(info.maxAbs).toBe(Math.max(...seen.map(Math.abs)))
    expect(value.next).toHaveLength(2)
    expect(value.next[0]).toHaveLength(5)
    const last = want.logits.at(0, -1)
    expect(value.next[0][0].id).toBe(last.indexOf(Math.max(...last)))
  })

  it('takes its own output as input again, padding and positions kept, and says what it does not use', async () => {
    const first = at('left.safetensors')
    await writeSafetensors(first, {
      input_ids: int64([0, 0, 9, 5, 6, 7], [2, 3]),
      attention_mask: int64([0, 0, 1, 1, 1, 1], [2, 3]),
      position_ids: { dtype: 'int32', shape: [2, 3], data: Int32Array.of(0, 0, 4, 0, 1, 2) } satisfies NDArray,
    })
    await cli(['run', at('tiny'), '--inputs', first, '--taps', 'resid_post.1', '--out', at('a.safetensors'), '--quiet'])
    const { value, stderr } = await json(
      'run',
      at('tiny'),
      '--inputs',
      at('a.safetensors'),
      '--taps',
      'resid_post.1',
      '--out',
      at('b.safetensors'),
    )
    expect([...value.ignored].sort()).toEqual(['logits', 'resid_post.1'])
    expect(stderr).toMatch(/also holds .*logits.*not used/)
    expect(value.tokens).toEqual([1, 3])
    const [a, b] = [await readTensors(at('a.safetensors')), await readTensors(at('b.safetensors'))]
    expect(b.tensors).toEqual(a.tensors)
    expect(a.tensors.position_ids?.data).toEqual(BigInt64Array.of(0n, 0n, 4n, 0n, 1n, 2n))
    expect([...(a.tensors['resid_post.1']?.data.slice(0, 64) ?? [])].every((v) => v === 0)).toBe(true)
  })

  it('reads JSONL in which texts and ids mix, and prints tables with pieces', async () => {
    await writeFile(at('data.jsonl'), '{"body":"w5 w6"}\n\n{"input_ids":[7,8,9]}\n"ids:1,2"\n')
    const { stdout, stderr, code } = await cli([
      'run',
      at('words'),
      '--data',
      at('data.jsonl'),
      '--field',
      'body',
      '--no-logits',
      '--taps',
      'z.*',
    ])
    expect([code, stderr]).toEqual([0, ''])
    expect(stdout).toMatch(/^z\.1 +\[3, 3, 4, 16\]/m)
    const shown = await cli(['run', at('words'), '--text', 'w5 w6'])
    expect(shown.stdout).toMatch(/^ *\d+ +"w\d+" +[\d.]+ %/m)
  })

  it('reports an edit that held nowhere', async () => {
    await writeFile(at('never.json'), JSON.stringify([{ op: 'zero', site: 'mlp_out.0', where: { tokens: [60] } }]))
    const { value, stderr, code } = await json('run', at('tiny'), '--text', 'ids:1,2', '--edits', at('never.json'))
    expect(code).toBe(0)
    expect(value.unfired).toHaveLength(1)
    expect(stderr).toContain(value.unfired[0])
  })
})

describe('generate', () => {
  it('streams ids without a tokenizer, and gives the same tokens as the library', async () => {
    const model = await load(at('tiny'), { threads: 1 })
    const { tokens } = await model.generate({ ids: [5, 6] }, { maxNewTokens: 8 }).result()
    const plain = await cli(['generate', at('tiny'), '--prompt', 'ids:5,6', '--max-new-tokens', '8'])
    expect(plain.stdout).toBe(`ids:${tokens.join()}\n`)
    const { value, stdout } = await json('generate', at('tiny'), '--prompt', 'ids:5,6', '--max-new-tokens', '8')
    expect(value).toMatchObject({ text: '', tokens, promptTokens: 2, finishReason: 'length' })
    expect(value.tokensPerSecond).toBeGreaterThan(0)
    expect(stdout.trimEnd().split('\n')).toHaveLength(1)
  })

  it('streams text from a prompt, a file, standard input and a chat', async () => {
    const text = async (...argv: string[]) => (await cli(['generate', at('words'), '--max-new-tokens', '4', '--quiet', ...argv])).stdout
    const prompted = await text('--prompt', 'w5 w6')
    expect(prompted.trim().split(/\s+/)).toHaveLength(4)
    await writeFile(at('prompt.txt'), 'w5 w6\n')
    expect(await text('--prompt-file', at('prompt.txt'))).toBe(prompted)
    expect((await cli(['generate', at('words'), '--max-new-tokens', '4', '--prompt-file', '-'], { stdin: 'w5 w6' })).stdout).toBe(prompted)
    expect(await text('--chat', 'w5')).toBe(await text('--prompt', 'w1 w5 w2 w3'))
  })

  it('draws reproducibly, steers by an edits file, and says which settings changed nothing', async () => {
    const draw = async (...argv: string[]) =>
      (await json('generate', at('tiny'), '--prompt', 'ids:5', '--max-new-tokens', '12', ...argv)).value.tokens
    const hot = ['--temperature', '2', '--top-k', '40', '--top-p', '0.99', '--min-p', '0.001', '--repetition-penalty', '1.1']
    expect(await draw(...hot, '--seed', '3')).toEqual(await draw(...hot, '--seed', '3'))
    expect(await draw(...hot, '--seed', '3')).not.toEqual(await draw(...hot, '--seed', '4'))
    await writeFile(
      at('force.json'),
      JSON.stringify([{ op: 'set', site: 'logits', params: { value: Array.from({ length: 61 }, (_, i) => (i === 42 ? 9 : 0)) } }]),
    )
    expect(await draw('--edits', at('force.json'))).toEqual(new Array(12).fill(42))
    const { stderr } = await cli(['generate', at('tiny'), '--prompt', 'ids:5', '--max-new-tokens', '2', '--top-k', '3', '--seed', '1'])
    expect(stderr).toMatch(/--top-k, --seed changed nothing/)
  })

  it('searches beams, begins and bans as told, goes on from a cache and takes a draft model', async () => {
    const run = async (...argv: string[]) =>
      (await json('generate', at('tiny'), '--prompt', 'ids:5,6', '--max-new-tokens', '6', ...argv)).value
    const model = await load(at('tiny'), { threads: 1 })
    const beams = await model.generate({ ids: [5, 6] }, { maxNewTokens: 6, beams: { count: 3, returned: 2, lengthPenalty: 0.5 } }).result()
    const found = await run('--beams', '3', '--returned', '2', '--length-penalty', '0.5')
    expect(found.sequences).toEqual(beams.sequences)
    expect((await run('--begin', 'ids:40,41')).tokens.slice(0, 2)).toEqual([40, 41])
    const plain = await run('--log-probabilities', '--alternatives', '2', '--save-cache', at('kept.safetensors'))
    expect(plain.logProbabilities).toHaveLength(6)
    expect(plain.alternatives[0][0].token).toBe(plain.tokens[0])
    expect((await run('--ban', `ids:${plain.tokens[0]}`)).tokens).not.toContain(plain.tokens[0])
    const on = await json(
      'generate',
      at('tiny'),
      '--prompt',
      `ids:5,6,${plain.tokens.join()}`,
      '--cache',
      at('kept.safetensors'),
      '--max-new-tokens',
      '3',
    )
    expect(on.value.cachedTokens).toBe(7)
    expect((await run('--max-new-tokens', '9')).tokens).toEqual([...plain.tokens, ...on.value.tokens])
    const drafted = await run('--draft', at('tiny'), '--draft-tokens', '2')
    expect(drafted.tokens).toEqual(plain.tokens)
    expect(drafted.draft).toEqual({ proposed: 4, accepted: 4 })
    await writeFile(at('schema.json'), '{"type":"boolean"}')
    const refused = await cli(['generate', at('tiny'), '--prompt', 'ids:5', '--json-schema', at('schema.json')])
    expect([refused.code, refused.stderr]).toEqual([2, expect.stringContaining('needs a tokenizer')])
    const lone = await cli(['generate', at('tiny'), '--prompt', 'ids:5', '--returned', '2'])
    expect([lone.code, lone.stderr]).toEqual([2, expect.stringContaining('--returned means nothing without --beams')])
  })

  it('keeps what it wrote when it is interrupted, and exits with 130', async () => {
    const controller = new AbortController()
    const stop = (all: string) => all.split(',').length >= 5 && controller.abort()
    const ran = await cli(['generate', at('long'), '--prompt', 'ids:5', '--max-new-tokens', '4000'], {
      signal: controller.signal,
      onStdout: stop,
    })
    expect(ran.code).toBe(130)
    expect(ran.stdout).toMatch(/^ids:\d+(,\d+){4,}\n$/)
    const before = await cli(['generate', at('long'), '--prompt', 'ids:5', '--json'], { signal: AbortSignal.abort() })
    expect([before.code, before.stderr]).toEqual([130, 'Interrupted; what was finished is kept.\n'])
    expect(JSON.parse(before.stdout)).toMatchObject({ code: 130 })
  })
})

describe('validate', () => {
  it('passes what the same model recorded, and fails with exit code 1 where a value is off', async () => {
    const folder = at('golden')
    await mkdir(folder)
    await cli([
      'run',
      at('tiny'),
      '--text',
      'ids:5,6,7',
      '--text',
      'ids:8,9',
      '--taps',
      'resid_post.*',
      '--out',
      join(folder, 'golden.safetensors'),
      '--quiet',
    ])
    const good = await json('validate', at('tiny'), '--against', folder)
    expect([good.code, good.value.passed, good.value.failed]).toEqual([0, 3, 0])
    const { tensors } = await readTensors(join(folder, 'golden.safetensors'))
    const off = (tensors['resid_post.1'] as NDArray<Float32Array>).data.slice()
    off[0] = (off[0] as number) + 0.1
    await writeSafetensors(join(folder, 'off.safetensors'), {
      ...tensors,
      'resid_post.1': { ...(tensors['resid_post.1'] as NDArray), data: off },
    })
    const bad = await cli(['validate', at('tiny'), '--against', folder, '--file', 'off.safetensors'])
    expect(bad.code).toBe(1)
    expect(bad.stdout).toMatch(/^resid_post\.1 +\[2, 3, 32\] +0\.1 .*fail/m)
    expect(bad.stdout).toContain('2 passed, 1 failed, 0 not checked.')
  })
})

describe('vector', () => {
  it.each([
    ['safetensors', ['resid_post.0', 'resid_post.1'], /^$/],
    // llama.cpp refuses a file with a vector for block 0.
    ['gguf', ['resid_post.1'], /^resid_post\.0 was left out/],
  ])('writes a vector for each site as %s', async (extension, sites, says) => {
    await writeFile(at('happy.txt'), 'ids:5,6,7\nids:8,9\n')
    await writeFile(at('sad.jsonl'), '{"prompt":"ids:10,11"}\n{"text":"ids:12"}\n')
    const out = at(`v.${extension}`)
    const argv = [
      'vector',
      at('tiny'),
      '--positive',
      at('happy.txt'),
      '--negative',
      at('sad.jsonl'),
      '--site',
      'resid_post.*',
      '--out',
      out,
    ]
    const { value, code, stderr } = await json(...argv, '--position', '-1')
    expect([code, stderr]).toEqual([0, expect.stringMatching(says)])
    expect(value).toMatchObject({ method: 'mean-difference', sites: sites.map((site) => ({ site, width: 32 })) })
    const { loadVector } = await import('../steer/index.ts')
    expect((await loadVector(out)).sites).toEqual(sites)
  })
})

describe('models and doctor', () => {
  it('lists and removes what the cache holds', async () => {
    expect((await cli(['models'])).stdout).toMatch(/^No model is cached in /)
    const hash = 'a'.repeat(64)
    const folder = at('home/cache/models')
    await mkdir(join(folder, hash), { recursive: true })
    await writeFile(join(folder, hash, 'model.gguf'), 'abc')
    const entry = {
      id: 'org/name',
      kind: 'hub',
      hash,
      files: [{ path: 'model.gguf', size: 3, sha256: hash }],
      fetchedAt: '2026-01-02T00:00:00Z',
    }
    await writeFile(join(folder, 'index.json'), JSON.stringify({ version: 1, models: [entry] }))
    expect((await json('models', 'list')).value).toMatchObject({ folder, models: [{ id: 'org/name', bytes: 3 }] })
    const lost = await cli(['models', 'remove', 'embedded'])
    expect([lost.code, lost.stderr]).toEqual([1, expect.stringMatching(/npm:llama2.* is not in the cache; there are org\/name/)])
    expect((await json('models', 'remove', 'org/name')).value).toMatchObject({ id: 'org/name', removed: true, bytes: 3 })
    expect((await json('models')).value.models).toEqual([])
  })

  it('tells about the machine and a model, and fails where the model cannot be loaded', async () => {
    const { value, code } = await json('doctor', at('words'))
    expect(code).toBe(0)
    expect(value).toMatchObject({ node: process.version, embedded: false, model: { family: 'llama', tokenizer: true, chatTemplate: true } })
    expect(value.devices[0]).toEqual({ device: 'cpu', available: true })
    expect(value.model.absentSites.map((s: { site: string }) => s.site)).toContain('pos_embeddings')
    expect(value.model.checks.join()).toMatch(/tensors were read/)
    const broken = await cli(['doctor', at('nowhere')])
    expect([broken.code, broken.stderr]).toEqual([1, ''])
    expect(broken.stdout).toMatch(/cannot be loaded: There is no model/)
  })
})

describe('studio and serve', () => {
  it('starts the server with what was given, says where it is, and stops with 130', async () => {
    const started: unknown[] = []
    const close = vi.fn(async () => {})
    vi.doMock('../server/index.ts', () => ({
      startServer: async (options: object) => {
        started.push(options)
        return { url: 'http://127.0.0.1:4711/', close }
      },
    }))
    const until = async (argv: string[]) => {
      const controller = new AbortController()
      return cli(argv, { signal: controller.signal, onStdout: () => controller.abort() })
    }
    const served = await until(['serve', at('tiny'), '--port', '4711', '--threads', '2', '--json'])
    expect([served.code, JSON.parse(served.stdout)]).toEqual([130, { url: 'http://127.0.0.1:4711/' }])
    const opened = await until([])
    expect(opened.stdout).toMatch(/studio is at http:\/\/127\.0\.0\.1:4711\//)
    await until(['studio', '--no-open'])
    expect(started).toMatchObject([{ model: at('tiny'), port: 4711, threads: 2, open: false }, { open: true }, { open: false }])
    expect(close).toHaveBeenCalledTimes(3)
    vi.doUnmock('../server/index.ts')
  })
})
