import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { writeSafetensors } from '../models/formats/index.ts'
import { tinyTensors } from '../run/testing.ts'
import { whyAbsent } from './devices.ts'
import { cli, float32, int64, smallLlama, writeModel, writeTokenizer } from './testing.ts'

let home: string
const at = (name: string) => join(home, name)

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'actlens-cli-'))
  await writeModel(at('tiny'))
  await writeModel(at('words'))
  await writeTokenizer(at('words'))
  const whole = await readFile(at('tiny/model.safetensors'))
  await writeModel(at('truncated'))
  await writeFile(at('truncated/model.safetensors'), whole.subarray(0, whole.length - 100))
  await writeModel(at('alien'), smallLlama)
  await writeFile(at('alien/config.json'), JSON.stringify({ model_type: 'martian', hidden_size: 32 }))
  await writeModel(at('misshapen'), smallLlama, { 'model.norm.weight': float32(new Array(33).fill(1)) })
  await writeModel(at('stranger'), smallLlama, { 'model.extra.weight': float32([1, 2]) })
  await writeFile(at('notjson.json'), '[{ "op": ')
  await writeFile(at('object.json'), '{}')
  const edits = { op: 'add', site: 'resid_post.0', params: { vector: new Array(32).fill(1) } }
  const save = (name: string, ...list: unknown[]) => writeFile(at(name), JSON.stringify(list))
  await save('good.json', edits)
  await save('site.json', edits, { ...edits, site: 'resid_pots.0' })
  await save('layer.json', { ...edits, site: 'resid_post.7' })
  await save('op.json', { ...edits, op: 'ad' })
  await save('key.json', { ...edits, wher: {} })
  await save('param.json', { ...edits, params: { vector: [1], scal: 2 } })
  await save('width.json', { ...edits, params: { vector: [1, 2, 3] } })
  await save('nan.json', { ...edits, params: { vector: { file: 'nan.safetensors' } } })
  await save('lost.json', { ...edits, params: { vector: { file: 'lost.safetensors', tensor: 'v' } } })
  await writeSafetensors(at('nan.safetensors'), { v: float32([Number.NaN, ...new Array(31).fill(1)]) })
  await writeSafetensors(at('empty.safetensors'), { input_ids: int64([], [0, 3]) })
  await writeSafetensors(at('masked.safetensors'), { input_ids: int64([1, 2], [1, 2]), attention_mask: int64([0, 0], [1, 2]) })
  await writeSafetensors(at('image.safetensors'), { input_ids: int64([1, 2], [1, 2]), pixel_values: float32([1]) })
  await writeSafetensors(at('noids.safetensors'), tinyTensors(smallLlama))
  await writeFile(at('blank.jsonl'), '\n\n')
  await writeFile(at('lines.jsonl'), '{"text":"w5"}\n{"txt":"w6"}\n')
  await writeFile(at('texts.txt'), 'w5 w6\nw7\n')
})
afterAll(() => rm(home, { recursive: true, force: true }))

const long = `ids:${new Array(65).fill(7).join()}`
/** Command line (words beginning with @ are files of the test), exit code, and what the sentence says. */
const cases: readonly (readonly [line: string, code: number, says: RegExp])[] = [
  ['sites', 2, /Missing required argument 'MODEL'.*sites --help/],
  ['sites @nowhere', 1, /There is no model '.*nowhere'/],
  ['sites npm:broken', 2, /not an npm source/],
  ['sites @truncated', 1, /truncated/],
  ['sites @alien', 1, /family 'martian' is not known/],
  ['sites @misshapen', 1, /shape \[33\], but the config asks for \[32\]/],
  ['sites @stranger', 1, /model\.extra\.weight/],
  ['sites @tiny --bogus', 2, /Unknown option '--bogus'/],
  ['sites @tiny extra', 2, /Too many arguments/],
  ['sites @tiny --threads 0', 2, /whole number from 1/],
  ['sites @tiny --device tpu', 2, /cpu, webgpu, cuda/],
  ['sites @tiny --precision q5', 2, /f32, f16, q8, q4/],
  ['run @tiny', 2, /give --text, --inputs or --data/],
  ['run @tiny --text ids:', 2, /ids:5,6,7/],
  ['run @tiny --text ids:1,x', 2, /ids:5,6,7/],
  ['run @tiny --text ids:1 --inputs @empty.safetensors', 2, /cannot be used with/],
  ['run @tiny --text hello', 1, /has no tokenizer; give token ids/],
  ['run @words --text=', 2, /text of --text is empty/],
  ['run @tiny --text ids:61', 2, /vocabulary has ids 0 to 60/],
  [`run @tiny --text ${long}`, 2, /65 tokens.*context holds 64/],
  ['run @tiny --text ids:1 --no-logits', 2, /name sites with --taps/],
  ['run @tiny --text ids:1 --taps resid_post', 2, /needs a layer/],
  ['run @tiny --text ids:1 --taps pos_embeddings', 2, /rotary/],
  ['run @tiny --text ids:1 --taps a,,b', 2, /empty site name/],
  ['run @tiny --text ids:1 --field x', 2, /give --data/],
  ['run @tiny --inputs @lost.safetensors', 1, /There is no file .*lost\.safetensors/],
  ['run @tiny --inputs @empty.safetensors', 2, /batch is empty/],
  ['run @tiny --inputs @masked.safetensors', 2, /holds no token/],
  ['run @tiny --inputs @image.safetensors', 2, /pixel_values/],
  ['run @tiny --inputs @noids.safetensors', 2, /no 'input_ids'/],
  ['run @tiny --data @lost.jsonl', 1, /does not exist/],
  ['run @words --data @blank.jsonl', 2, /holds no texts/],
  ['run @words --data @lines.jsonl', 2, /lines\.jsonl, line 2 has no text/],
  ['run @words --data @texts.txt', 1, /texts\.txt, line 1 is not JSON/],
  ['run @nowhere --text ids:1 --out @no/folder/x.safetensors', 2, /folder .* does not exist/],
  ['run @tiny --text ids:1 --out @tiny', 2, /is a folder/],
  ['run @tiny --text ids:1 --edits @lost-edits.json', 1, /does not exist/],
  ['run @tiny --text ids:1 --edits @notjson.json', 1, /not valid JSON/],
  ['run @tiny --text ids:1 --edits @object.json', 2, /JSON array of edits/],
  ['run @tiny --text ids:1 --edits @site.json', 2, /site\.json, edit 1: There is no site 'resid_pots\.0'; did you mean/],
  ['run @tiny --text ids:1 --edits @layer.json', 2, /layer\.json, edit 0: .*layers 0 to 1/],
  ['run @tiny --text ids:1 --edits @op.json', 2, /op\.json, edit 0: There is no edit op 'ad'; did you mean 'add'/],
  ['run @tiny --text ids:1 --edits @key.json', 2, /unknown key 'wher'/],
  ['run @tiny --text ids:1 --edits @param.json', 2, /unknown parameter 'scal'/],
  ['run @tiny --text ids:1 --edits @width.json', 2, /width\.json, edit 0: .*32 wide/],
  ['run @tiny --text ids:1 --edits @nan.json', 2, /nan\.json, edit 0: .*NaN/],
  ['run @tiny --text ids:1 --edits @lost.json', 1, /lost\.json, edit 0: There is no file .*lost\.safetensors/],
  ['generate @tiny', 2, /give a --prompt/],
  ['generate @words --prompt=', 2, /text of --prompt is empty/],
  [`generate @tiny --prompt ${long}`, 2, /context holds 64/],
  ['generate @tiny --prompt ids:1 --chat Hi', 2, /cannot be used with/],
  ['generate @tiny --chat Hi', 1, /no tokenizer/],
  ['generate @words --chat ids:1', 2, /give token ids to --prompt/],
  ['generate @tiny --prompt ids:1 --max-new-tokens 0', 2, /whole number from 1/],
  ['generate @nowhere --prompt ids:1 --temperature 1 --top-p 2', 2, /^--top-p must be above 0 and at most 1, not 2/],
  ['generate @tiny --prompt ids:1 --temperature hot', 2, /must be a number/],
  ['generate @tiny --prompt ids:1 --stop end', 2, /tokenizer/],
  ['generate @tiny --prompt-file @lost.txt', 1, /does not exist/],
  ['validate @tiny', 2, /--against/],
  ['validate @tiny --against @nowhere', 1, /There is no file .*golden\.safetensors/],
  ['validate @tiny --against @tiny --file model.safetensors', 1, /no tensor that could be checked/],
  ['vector @tiny --positive @texts.txt --negative @texts.txt --site resid_post.0', 2, /--out/],
  ['vector @tiny --positive @texts.txt --negative @texts.txt --site resid_post.0 --out @v.txt', 2, /\.safetensors or \.gguf/],
  ['vector @tiny --positive @texts.txt --negative @texts.txt --site resid_post.0 --out @v.gguf --method mean-diff', 2, /did you mean/],
  ['vector @tiny --positive @texts.txt --negative @lost.txt --site resid_post.0 --out @v.gguf', 1, /does not exist/],
  ['vector @words --positive @texts.txt --negative @texts.txt --site resid_post.0 --out @v.gguf', 2, /belongs to one side only/],
  ['models fetch', 2, /needs a MODEL/],
  ['models fetch @tiny', 2, /nothing to fetch/],
  ['models prune', 2, /Allowed choices are list, fetch, remove/],
  ['frobnicate @tiny', 2, /There is no command 'frobnicate'.*Commands are sites, run/],
]

describe('bad input', () => {
  it.each(cases)('%s', async (line, code, says) => {
    const argv = line.split(' ').map((w) => w.replace(/^@/, `${home}/`))
    const before = (await readdir(home)).sort()
    const ran = await cli(argv)
    expect(ran.stderr).toMatch(says)
    expect(ran.code).toBe(code)
    expect(ran.stdout).toBe('')
    // One line, no stack, and nothing left behind.
    expect(ran.stderr.trimEnd().split('\n')).toHaveLength(1)
    expect(ran.stderr).not.toContain('    at ')
    expect((await readdir(home)).sort()).toEqual(before)
  })

  it('refuses a device that is not there', async () => {
    const reason = await whyAbsent('cuda')
    const ran = await cli(['sites', at('tiny'), '--device', 'cuda'])
    expect(ran.code).toBe(reason === undefined ? 0 : 1)
    if (reason !== undefined) expect(ran.stderr).toMatch(/device 'cuda' cannot be used on this machine/)
  })

  it('says the same as one JSON document with --json, and the stack with --debug', async () => {
    const ran = await cli(['sites', at('nowhere'), '--json', '--debug'])
    const document = JSON.parse(ran.stdout) as { error: string; kind: string; code: number }
    expect(document).toMatchObject({ kind: 'FormatError', code: 1 })
    expect(ran.stderr).toContain(document.error)
    expect(ran.stderr).toContain('    at ')
  })
})
