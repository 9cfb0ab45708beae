import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { attribute, attributeEdges, findCircuit, patch } from '../../explore/index.ts'
import { errorOf } from '../../explore/testing.ts'
import { decodeSafetensors, writeSafetensors } from '../../models/formats/index.ts'
import { load } from '../../run/index.ts'
import { cli, int64, writeModel, writeTokenizer } from '../testing.ts'

let home: string
const at = (name: string) => join(home, name)
const json = async (...argv: string[]) => {
  const ran = await cli([...argv, '--json'])
  return { ...ran, value: JSON.parse(ran.stdout) }
}
const readTensors = async (path: string) => decodeSafetensors(await readFile(path))
const pair = {
  clean: { ids: [5, 6, 7, 8] },
  corrupt: { ids: [5, 9, 7, 8] },
  metric: { kind: 'logit-difference', answer: 7, wrong: 40 },
} as const
const words = ['--clean', 'w5 w6 w7 w8', '--corrupt', 'ids:5,9,7,8', '--answer', 'w7', '--wrong', 'ids:40']

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'actlens-cli-'))
  await writeModel(at('tiny'))
  await writeModel(at('words'))
  await writeTokenizer(at('words'))
  await writeFile(at('texts.txt'), 'w5 w6\nids:7,8,9\n')
})
afterAll(() => rm(home, { recursive: true, force: true }))

describe('gradient', () => {
  it('stores gradients at full batch shape under the names of sites and of the checkpoint', async () => {
    const out = at('gradient.safetensors')
    const inputs = at('padded.safetensors')
    await writeSafetensors(inputs, {
      input_ids: int64([0, 0, 9, 5, 6, 7], [2, 3]),
      attention_mask: int64([0, 0, 1, 1, 1, 1], [2, 3]),
    })
    const { value, code } = await json(
      ...[
        'gradient',
        at('tiny'),
        '--inputs',
        inputs,
        '--of',
        'next-token',
        '--at',
        'resid_post.*,attn_scores.0',
        '--parameters',
        '*.0.*norm*',
        '--out',
        out,
      ],
    )
    expect(code).toBe(0)
    const { tensors } = await readTensors(out)
    const norms = ['input_layernorm', 'post_attention_layernorm'].map((n) => `grad.param.model.layers.0.${n}.weight`)
    expect(
      Object.keys(tensors)
        .filter((n) => n.startsWith('grad.'))
        .sort(),
    ).toEqual(['grad.attn_scores.0', ...norms, 'grad.resid_post.0', 'grad.resid_post.1'].sort())
    expect(tensors['grad.resid_post.0']?.shape).toEqual([2, 3, 32])
    expect([...(tensors['grad.resid_post.0']?.data.slice(0, 64) ?? [])].every((v) => v === 0)).toBe(true)
    expect([...(tensors['grad.attn_scores.0']?.data ?? [])].every((v) => Number.isFinite(Number(v)))).toBe(true)
    const model = await load(at('tiny'), { threads: 1 })
    const want = await model.gradient({ of: { kind: 'next-token' }, at: 'resid_post.0' }, { rows: [[9], [5, 6, 7]] })
    expect(value.value).toBeCloseTo(want.value, 5)
    expect(tensors.loss?.data[0]).toBeCloseTo(want.value, 5)
    const [ours, theirs] = [tensors['grad.resid_post.0'], want.sites['resid_post.0']].map((a) => a?.data.slice(96) as Float32Array)
    expect(errorOf(ours as Float32Array, theirs as Float32Array)).toBeLessThan(1e-4)
  })

  it('knows tokens as texts, numbers and ids, and a position', async () => {
    const run = async (of: string, ...more: string[]) =>
      (await json('gradient', at('words'), '--text', 'w5 w6 w7', '--of', of, '--at', 'resid_post.0', '--out', at('g.safetensors'), ...more))
        .value.value
    const model = await load(at('words'), { threads: 1 })
    const { logits } = await model.run({ ids: [5, 6, 7] })
    expect(await run('logit:w9')).toBeCloseTo(logits.at(0, -1)[9] as number, 4)
    expect(await run('logit:9', '--position', '1')).toBeCloseTo(logits.at(0, 1)[9] as number, 4)
    const difference = (logits.at(0, -1)[9] as number) - (logits.at(0, -1)[4] as number)
    for (const of of ['logit-difference:w9,w4', 'logit-difference:ids:9,ids:4', 'logit-difference:9,4'])
      expect(await run(of)).toBeCloseTo(difference, 4)
  })
})

describe('patch and attribute', () => {
  it('write a tensor for each pattern, named by it, and the metric of both runs', async () => {
    const model = await load(at('words'), { threads: 1 })
    for (const [name, sites, more, options] of [
      ['patch', ['resid_pre.*', 'z.{0,1}'], [], {}],
      ['patch', ['z.*'], ['--positions', 'all', '--direction', 'noise'], { positions: 'all', direction: 'noise' }],
      ['attribute', ['resid_pre.*', 'z.*'], [], {}],
      ['attribute', ['z.*'], ['--method', 'integrated', '--steps', '4'], { method: 'integrated', steps: 4 }],
    ] as const) {
      const out = at(`${name}.safetensors`)
      const { value, code } = await json(name, at('words'), ...words, ...sites.flatMap((s) => ['--sites', s]), ...more, '--out', out)
      expect(code).toBe(0)
      const request = { ...pair, sites, ...options }
      const want = name === 'patch' ? await patch(model, request) : await attribute(model, request)
      const { tensors, metadata } = await readTensors(out)
      expect(Object.keys(tensors).sort()).toEqual([...sites, 'metric.clean', 'metric.corrupt'].sort())
      for (const s of sites) expect(tensors[s]).toEqual({ dtype: 'float32', shape: want.tables[s]?.shape, data: want.tables[s]?.data })
      expect(tensors['metric.clean']).toMatchObject({ shape: [], data: Float32Array.of(want.metric.clean) })
      expect(value.metric).toEqual(want.metric)
      expect(value.tables[0].axes[0].name).toBe('layer')
      expect(JSON.parse(metadata.actlens as string)).toMatchObject({ holds: name === 'patch' ? 'metric' : 'change', metric: pair.metric })
    }
  })

  it('write edges beside the tables', async () => {
    const out = at('edges.safetensors')
    const { value } = await json('attribute', at('words'), ...words, '--sites', 'z.*', '--method', 'edge', '--out', out)
    const want = await attributeEdges(await load(at('words'), { threads: 1 }), pair)
    const { tensors } = await readTensors(out)
    expect(tensors.edges).toEqual(want.scores)
    expect(value.edges.senders).toEqual(want.senders)
    expect(value.edges.values).toHaveLength(want.scores.data.length)
  })

  it('show the largest changes', async () => {
    const { stdout } = await cli(['patch', at('words'), ...words, '--sites', 'resid_pre.*'])
    expect(stdout).toMatch(/^logit-difference of the clean run -?[\d.]+, of the corrupted run/)
    expect(stdout).toMatch(/^layer +pos +token +metric +change$/m)
    const edges = await cli(['attribute', at('words'), ...words, '--sites', 'z.*', '--method', 'edge'])
    expect(edges.stdout).toMatch(/^sender +receiver +change$/m)
  })
})

describe('circuit', () => {
  it('writes its tables and how it does', async () => {
    const out = at('circuit.safetensors')
    const { value, code } = await json('circuit', at('words'), ...words, '--count', '12', '--out', out)
    expect(code).toBe(0)
    const found = await findCircuit(await load(at('words'), { threads: 1 }), { ...pair, search: { kind: 'top', count: 12 } })
    expect(value.edges).toEqual(found.edges)
    expect(value.faithfulness).toBeCloseTo(found.faithfulness, 5)
    const { tensors } = await readTensors(out)
    expect(tensors['circuit.kept']).toEqual(found.kept)
    expect(tensors['metric.circuit']?.data[0]).toBeCloseTo(found.metric.circuit, 5)
    expect((await cli(['circuit', at('words'), ...words, '--search', 'threshold', '--threshold', '0.05'])).stdout).toMatch(/faithfulness/)
  })
})

const cases: readonly (readonly [line: string, code: number, says: RegExp])[] = [
  ['gradient @tiny --text ids:1,2 --of next-token --out @g.x', 2, /--at, or --parameters/],
  ['gradient @tiny --text ids:1,2 --of nothing --at z.0 --out @g.x', 2, /no loss/],
  ['gradient @tiny --text ids:1,2 --of logit:99 --at z.0 --out @g.x', 2, /ids 0 to 60/],
  ['gradient @tiny --text ids:1,2 --of logit:word --at z.0 --out @g.x', 1, /no tokenizer/],
  ['gradient @words --text ids:1,2 --of logit:w1?w2 --at z.0 --out @g.x', 2, /must be exactly one token, but it is 2/],
  ['gradient @tiny --text ids:1,2 --of logit-difference:7 --at z.0 --out @g.x', 2, /two tokens/],
  ['gradient @tiny --text ids:1,2 --of next-token --position 1 --at z.0 --out @g.x', 2, /all positions/],
  ['gradient @tiny --text ids:1,2 --of next-token --parameters *nope* --out @g.x', 2, /No parameter/],
  ['gradient @tiny --of next-token --at z.0 --out @g.x', 2, /give --text, --inputs or --data/],
  ['patch @tiny --clean ids:1,2 --corrupt ids:1,3 --sites z.*', 2, /needs --answer/],
  ['patch @tiny --clean ids:1,2 --corrupt ids:1,3 --sites z.* --metric kl --answer ids:1', 2, /does not look at --answer/],
  ['patch @tiny --clean ids:1,2 --corrupt ids:3 --answer ids:1 --wrong ids:2 --sites z.*', 2, /2 tokens and the corrupted one 1/],
  ['patch @tiny --clean ids:1,2 --corrupt ids:1,3 --answer 7 --wrong ids:2 --sites z.*', 1, /no tokenizer/],
  ['patch @tiny --clean ids:1,2 --corrupt ids:1,3 --answer ids:1 --wrong ids:2 --sites zz.*', 2, /no site 'zz/],
  ['patch @tiny --clean ids:1,2 --corrupt ids:1,3 --answer ids:1 --wrong ids:2 --sites z.* --position 9', 2, /position 9/],
  ['attribute @tiny --clean ids:1,2 --corrupt ids:1,3 --answer ids:1 --wrong ids:2 --sites z.* --steps 3', 2, /--method integrated/],
  ['circuit @tiny --clean ids:1,2 --corrupt ids:1,3 --answer ids:1 --wrong ids:2 --search acdc', 2, /needs --threshold/],
  ['circuit @tiny --clean ids:1,2 --corrupt ids:1,3 --answer ids:1 --wrong ids:2 --threshold 1', 2, /for --search threshold and acdc/],
]

it.each(cases)('refuses: %s', async (line, code, says) => {
  const before = (await readdir(home)).sort()
  const ran = await cli(line.split(' ').map((w) => w.replace(/^@/, `${home}/`).replace('?', ' ')))
  expect(ran.stderr).toMatch(says)
  expect([ran.code, ran.stdout]).toEqual([code, ''])
  expect(ran.stderr.trimEnd().split('\n')).toHaveLength(1)
  expect((await readdir(home)).sort()).toEqual(before)
})
