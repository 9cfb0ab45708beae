import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { lens, patchscope, pathLens } from '../../explore/index.ts'
import { decodeSafetensors } from '../../models/formats/index.ts'
import { load } from '../../run/index.ts'
import { cli, writeModel, writeTokenizer } from '../testing.ts'

let home: string
const at = (name: string) => join(home, name)
const json = async (...argv: string[]) => {
  const ran = await cli([...argv, '--json'])
  return { ...ran, value: JSON.parse(ran.stdout) }
}
const readTensors = async (path: string) => decodeSafetensors(await readFile(path))

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'actlens-cli-'))
  await writeModel(at('tiny'))
  await writeModel(at('words'))
  await writeTokenizer(at('words'))
  await writeFile(at('texts.txt'), 'w5 w6\nids:7,8,9\n')
  await writeFile(at('long.txt'), `ids:${Array.from({ length: 200 }, (_, i) => (i * 7) % 60).join()}\n`)
})
afterAll(() => rm(home, { recursive: true, force: true }))

describe('lens', () => {
  it('writes what it reads, by kind', async () => {
    const model = await load(at('words'), { threads: 1 })
    for (const more of [
      [],
      ['--kind', 'jacobian', '--fit', at('texts.txt'), '--save', at('maps.safetensors')],
      ['--kind', 'jacobian', '--load', at('maps.safetensors')],
      ['--kind', 'tuned', '--fit', at('long.txt'), '--save', at('published'), '--steps', '3', '--sites', 'resid_pre.0,resid_post.0'],
      ['--kind', 'tuned', '--load', at('published'), '--sites', 'resid_post.*'],
    ]) {
      const out = at('lens.safetensors')
      const { value, code } = await json('lens', at('words'), '--text', 'w5 w6 w7', '--top', '3', '--out', out, ...more)
      expect(code).toBe(0)
      const { tensors } = await readTensors(out)
      expect(tensors['lens.top_ids']).toMatchObject({ dtype: 'int64', shape: [2, 3, 3] })
      expect(tensors['lens.top_probs']?.shape).toEqual([2, 3, 3])
      expect(tensors['lens.entropy']?.shape).toEqual([2, 3])
      const own = await lens(model, { ids: [5, 6, 7] }, { top: 3 })
      if (more.includes('resid_pre.0,resid_post.0')) continue
      // The last layer is the model itself, whatever the lens.
      expect(tensors['lens.top_ids']?.data.slice(9)).toEqual(own.topIds.data.slice(9))
      expect(value.top[1][2][0]).toMatchObject({ id: Number(own.topIds.data[15]), piece: `w${own.topIds.data[15]}` })
    }
    expect((await cli(['lens', at('tiny'), '--text', 'ids:5,6'])).stdout).toMatch(/^next token after the whole text\n/)
  })

  it('of paths and patchscopes, too', async () => {
    const model = await load(at('words'), { threads: 1 })
    const out = at('path.safetensors')
    const path = await json('lens', at('words'), '--text', 'w5 w6 w7', '--kind', 'path', '--by', 'heads', '--top', '2', '--out', out)
    const wanted = await pathLens(model, { ids: [5, 6, 7] }, { by: 'heads', top: 2 })
    expect(path.value.paths).toEqual(wanted.paths)
    const { tensors } = await readTensors(out)
    expect(tensors['lens.top_logits']).toEqual(wanted.topLogits)
    expect(tensors['lens.bottom_ids']).toEqual(wanted.bottomIds)
    const words = ['--text', 'w5 w6', '--kind', 'patchscope', '--target', 'w9 w9 w3', '--placeholder', '1', '--max-new-tokens', '2']
    const scope = await json('lens', at('words'), ...words)
    const seen = await patchscope(model, {
      source: { ids: [5, 6] },
      positions: [0, 1],
      target: { ids: [9, 9, 3] },
      placeholder: 1,
      maxNewTokens: 2,
    })
    expect(scope.value.written[1][1].tokens).toEqual(seen.written![1]![1]!.tokens)
    expect(scope.value.top[0][1][0].id).toBe(Number(seen.topIds.data[10]))
    expect((await cli(['lens', at('words'), ...words])).stdout).toMatch(/what was written on/)
    expect((await cli(['lens', at('tiny'), '--text', 'ids:5,6', '--kind', 'path'])).stdout).toMatch(/^what each path adds/)
  })
})

const cases: readonly (readonly [line: string, code: number, says: RegExp])[] = [
  ['lens @tiny --text ids:1 --kind tuned', 2, /give them by --fit/],
  ['lens @tiny --text ids:1 --kind patchscope', 2, /needs --target/],
  ['lens @tiny --text ids:1 --kind patchscope --target ids:2 --placeholder 4', 2, /no position 4/],
  ['lens @tiny --text ids:1 --fit @texts.txt', 2, /does not concern --kind logit/],
  ['lens @tiny --text ids:1 --kind jacobian --save @folder', 2, /must end in .safetensors/],
  ['lens @tiny --text ids:1 --by heads', 2, /does not concern --kind logit, but path/],
  ['lens @tiny --text ids:1 --sites q.*', 2, /d_model wide/],
]

it.each(cases)('refuses: %s', async (line, code, says) => {
  const before = (await readdir(home)).sort()
  const ran = await cli(line.split(' ').map((w) => w.replace(/^@/, `${home}/`)))
  expect(ran.stderr).toMatch(says)
  expect([ran.code, ran.stdout]).toEqual([code, ''])
  expect(ran.stderr.trimEnd().split('\n')).toHaveLength(1)
  expect((await readdir(home)).sort()).toEqual(before)
})
