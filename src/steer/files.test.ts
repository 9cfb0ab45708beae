import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { FormatError, UsageError } from '../base/errors.ts'
import { encodeSafetensors, openSafetensors } from '../models/formats/index.ts'
import { bytesOfPieces, gguf, ggufText, little, temporaryFolder } from '../models/formats/testing.ts'
import {
  encodeEasySteer,
  encodeGgufVector,
  type GgufProducer,
  loadVector,
  meanDifference,
  SteeringVector,
  saveVector,
  type VectorRecord,
} from './index.ts'
import { gaussianRows, golden, hasGoldens, plantedModel, tokens } from './testing.ts'

const record: VectorRecord = {
  method: 'mean-difference',
  options: { seed: 3 },
  model: { id: 'größer', hash: 'b'.repeat(64), family: 'llama', layers: 4 },
  sites: [],
  prompts: { hash: 'c'.repeat(64), positive: 2, negative: 3 },
  position: -2,
  precision: 'f32',
}
const [first, second] = gaussianRows(2, 5) as [number[], number[]]
const blocks = () =>
  new SteeringVector(
    [
      ['resid_post.2', first],
      ['resid_post.1', second],
    ],
    record,
  )
const same = (a: SteeringVector, b: SteeringVector) => {
  expect([...a.vectors]).toEqual([...b.vectors])
  expect(a.record).toEqual(b.record)
}

describe('safetensors', () => {
  it('keep any site and the whole record, bit for bit, and the same bytes each time', async () => {
    const folder = temporaryFolder()
    await using model = await plantedModel(gaussianRows(6, 32))
    const vector = await meanDifference(model, {
      positive: tokens(0, 3),
      negative: tokens(3, 6),
      site: ['embeddings', 'resid_post.*', 'z.1', 'final_norm'],
    })
    await saveVector(join(folder, 'a.safetensors'), vector)
    const loaded = await loadVector(join(folder, 'a.safetensors'))
    expect(loaded.sites.toSorted()).toEqual(vector.sites.toSorted())
    for (const site of vector.sites) expect(loaded.at(site)).toEqual(vector.at(site))
    expect({ ...loaded.record, sites: [] }).toEqual({ ...vector.record, sites: [] })
    await saveVector(join(folder, 'b.safetensors'), loaded)
    expect(await readFile(join(folder, 'b.safetensors'))).toEqual(await readFile(join(folder, 'a.safetensors')))
    expect((await readdir(folder)).toSorted()).toEqual(['a.safetensors', 'b.safetensors'])
    const store = await openSafetensors(join(folder, 'a.safetensors'))
    expect(store.metadata.get('format')).toBe('actlens.steering-vector')
    await store.close()
  })

  it('of others, with tensors under our names, are vectors without a past', async () => {
    const path = join(temporaryFolder(), 'a.safetensors')
    const data = Float32Array.of(1, 2)
    await writeFile(path, encodeSafetensors({ 'resid_post.3': { dtype: 'float32', shape: [2], data } }))
    const vector = await loadVector(path)
    expect(vector.at('resid_post.3')).toEqual(data)
    expect(vector.record).toMatchObject({ method: 'unknown', source: { format: 'safetensors' } })
  })

  it('that hold no vector are refused with their name', async () => {
    const folder = temporaryFolder()
    const write = async (name: string, tensor: string, shape: number[], metadata?: Record<string, string>) => {
      const array = { dtype: 'float32' as const, shape, data: new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(Number.NaN) }
      await writeFile(join(folder, name), encodeSafetensors({ [tensor]: array }, metadata))
      return join(folder, name)
    }
    const refused = async (path: string, message: RegExp) => {
      await expect(loadVector(path)).rejects.toThrow(message)
      await expect(loadVector(path)).rejects.toBeInstanceOf(FormatError)
    }
    await refused(
      await write('a.safetensors', 'model.layers.0.weight', [2]),
      /a.safetensors holds no usable vector. 'model.layers.0.weight' is no site/,
    )
    await refused(await write('b.safetensors', 'resid_post.1', [2, 2]), /'resid_post.1' in .* has shape \[2, 2\]/)
    await refused(await write('c.safetensors', 'resid_post.1', [2]), /c.safetensors holds no usable vector. .* NaN/)
    await refused(await write('d.safetensors', 'resid_post.1', [2], { record: '{' }), /The record of .*d.safetensors is damaged/)
    await refused(await write('e.safetensors', 'resid_post.1', [2], { record: '{"method":1}' }), /it names no method and model/)
    await writeFile(join(folder, 'f.safetensors'), 'nonsense')
    await refused(join(folder, 'f.safetensors'), /f.safetensors/)
    await refused(join(folder, 'g.safetensors'), /g.safetensors/)
  })
})

describe('GGUF', () => {
  it.each(['repeng', 'llama.cpp', 'easysteer'] as const)('comes back as it was, labelled as by %s', async (producer) => {
    const path = join(temporaryFolder(), 'a.gguf')
    await saveVector(path, blocks(), { producer })
    same(await loadVector(path), blocks())
  })

  it('labels outputs of blocks as its producer does, and inputs as the outputs of the blocks before', async () => {
    const labels = (vector: SteeringVector, producer: GgufProducer) =>
      [...new TextDecoder('latin1').decode(encodeGgufVector(vector, { producer })).matchAll(/direction\.(\d+)/g)].map((m) => Number(m[1]))
    expect(labels(blocks(), 'repeng')).toEqual([2, 1])
    expect(labels(blocks(), 'llama.cpp')).toEqual([3, 2])
    const mixed = new SteeringVector(
      [
        ['resid_pre.2', first],
        ['resid_post.3', second],
      ],
      record,
    )
    expect(labels(mixed, 'repeng')).toEqual([1, 3])
  })

  it('lets the reader say whose labels a file has, and else believes where llama.cpp applies them', async () => {
    const path = join(temporaryFolder(), 'a.gguf')
    await saveVector(path, blocks(), { producer: 'llama.cpp', record: false })
    const at = async (options: object) => (await loadVector(path, options)).sites
    expect(await at({})).toEqual(['resid_post.3', 'resid_post.2'])
    expect((await loadVector(path)).record).toEqual({
      method: 'unknown',
      model: { id: 'a model of the family llama', family: 'llama' },
      sites: ['resid_post.3', 'resid_post.2'],
      source: { format: 'gguf', layerShift: 0, producer: 'llama.cpp' },
    })
    expect(await at({ producer: 'llama.cpp' })).toEqual(['resid_post.2', 'resid_post.1'])
    expect(await at({ layerShift: 1 })).toEqual(['resid_post.4', 'resid_post.3'])
    expect(await at({ producer: 'llama.cpp', layerShift: 0 })).toEqual(['resid_post.3', 'resid_post.2'])
    await expect(loadVector(path, { layerShift: -3 })).rejects.toThrow(/'direction.2' in .* would be block -1 with a shift of -3/)
    await expect(loadVector(path, { layerShift: 0.5 })).rejects.toThrow('layerShift must be an integer')
    await expect(loadVector(path, { producer: 'x' as GgufProducer })).rejects.toThrow(
      new UsageError("There is no producer 'x'; known are repeng, easysteer, llama.cpp."),
    )
    await saveVector(path, blocks(), { producer: 'easysteer', record: false })
    expect((await loadVector(path)).record).toMatchObject({ method: 'mean-difference', source: { producer: 'easysteer' } })
    // Our own record yields to an explicit choice, and says so.
    await saveVector(path, blocks())
    const moved = await loadVector(path, { layerShift: 1 })
    expect(moved.sites).toEqual(['resid_post.3', 'resid_post.2'])
    expect(moved.record).toMatchObject({ method: 'mean-difference', source: { layerShift: 1 } })
  })

  it('refuses what a control vector cannot hold', async () => {
    const path = join(temporaryFolder(), 'a.gguf')
    const refused = (sites: string[], message: RegExp, options: object = {}) =>
      expect(
        saveVector(
          path,
          new SteeringVector(
            sites.map((s) => [s, first]),
            record,
          ),
          options,
        ),
      ).rejects.toThrow(message)
    await refused(['mlp_out.1'], /outputs of blocks only \(resid_post.N\), not 'mlp_out.1'; save it as safetensors/)
    await refused(['resid_pre.0'], /not 'resid_pre.0'/)
    await refused(['resid_post.0'], /would be direction.0, which llama.cpp refuses/)
    await refused(['resid_post.1', 'resid_pre.2'], /share a place/)
    await refused(['resid_post.1'], /There is no producer 'mine'/, { producer: 'mine' })
    expect(await readdir(join(path, '..'))).toEqual([])
    await saveVector(path, new SteeringVector([['resid_post.0', first]], record), { producer: 'llama.cpp' })
    await saveVector(path, new SteeringVector([['resid_post.0', first]], record), { allowLayerZero: true })
    expect((await loadVector(path)).sites).toEqual(['resid_post.0'])
  })

  it('of another kind, or damaged, is refused', async () => {
    const path = join(temporaryFolder(), 'a.gguf')
    const refused = async (bytes: Uint8Array, message: RegExp) => {
      await writeFile(path, bytes)
      await expect(loadVector(path)).rejects.toThrow(message)
      await expect(loadVector(path)).rejects.toBeInstanceOf(FormatError)
    }
    const kind = (name: string) => ['general.architecture', 8, ggufText(name)] as const
    const tensor = (name: string, sizes: number[]) => [{ name, sizes, type: 0, offset: 0 }]
    const whole = encodeGgufVector(blocks())
    await refused(gguf([kind('llama')], [], new Uint8Array(0)), /a GGUF file of 'llama', not of a control vector/)
    await refused(gguf([kind('controlvector')], [], new Uint8Array(0)), /holds no direction/)
    await refused(gguf([kind('controlvector')], tensor('direction.1', [2, 2]), new Uint8Array(16)), /'direction.1' \[2, 2\]/)
    await refused(gguf([kind('controlvector')], tensor('direction.x', [2]), new Uint8Array(8)), /'direction.x'/)
    const nan = bytesOfPieces(little(4, 0x7fc00000), little(4, 0))
    await refused(gguf([kind('controlvector')], tensor('direction.1', [2]), nan), /a.gguf holds no usable vector. .*NaN/)
    await refused(
      gguf([kind('controlvector'), ['controlvector.actlens', 8, ggufText('{}')]], tensor('direction.1', [1]), new Uint8Array(4)),
      /The record in 'controlvector.actlens' .* is damaged/,
    )
    await refused(whole.subarray(0, whole.length - 33), /truncated/)
    await refused(whole.subarray(0, 100), /more than its 100 bytes can hold/)
  })

  it.skipIf(!hasGoldens).each([
    ['repeng-pca_diff', 'repeng', [0, 1, 2]],
    ['repeng-pca_center', 'repeng', [0, 1, 2]],
    ['repeng-default', 'repeng', [2, 1]],
    ['repeng-combined', 'repeng', [0, 1, 2]],
    ['llamacpp-labelled', 'llama.cpp', [0, 1]],
  ] as const)('%s is read, and written again byte for byte', async (name, producer, layers) => {
    const path = golden(`vectors/${name}.gguf`)
    const vector = await loadVector(path, { producer })
    expect(vector.sites).toEqual(layers.map((l) => `resid_post.${l}`))
    expect(vector.record).toMatchObject({ model: { family: 'llama' }, source: { producer } })
    // Without a word from the reader, the producer is recognised, and the labels are believed.
    const plain = await loadVector(path)
    expect(plain.record.source).toEqual({ format: 'gguf', layerShift: 0, producer })
    const values = await openSafetensors(golden('vectors/repeng.safetensors'))
    for (const site of plain.sites)
      expect(plain.at(site)).toEqual(await values.readFloat32(`gguf.${name}.${site.replace('resid_post', 'direction')}`))
    await values.close()
    expect(Buffer.from(encodeGgufVector(vector, { producer, record: false, allowLayerZero: true }))).toEqual(await readFile(path))
  })

  it.skipIf(!hasGoldens)('two producers label the same directions one apart', async () => {
    const repeng = await loadVector(golden('vectors/repeng-pca_diff.gguf'))
    const llama = await loadVector(golden('vectors/llamacpp-labelled.gguf'), { producer: 'llama.cpp' })
    for (const site of llama.sites) expect(llama.at(site)).toEqual(repeng.at(site))
  })
})

describe('Neuronpedia', () => {
  it('takes what enters a block, which is what left the one before', async () => {
    const path = join(temporaryFolder(), 'a.json')
    await saveVector(path, blocks(), { format: 'neuronpedia', modelId: 'gpt2-small', label: 'happy', strength: 4 })
    expect(JSON.parse(await readFile(path, 'utf8'))).toEqual([
      {
        modelId: 'gpt2-small',
        layerNumber: 3,
        hookType: 'hook_resid_pre',
        vector: [...Float32Array.from(first)],
        vectorDefaultSteerStrength: 4,
        vectorLabel: 'happy',
      },
      {
        modelId: 'gpt2-small',
        layerNumber: 2,
        hookType: 'hook_resid_pre',
        vector: [...Float32Array.from(second)],
        vectorDefaultSteerStrength: 4,
        vectorLabel: 'happy',
      },
    ])
    const loaded = await loadVector(path)
    expect([...loaded.vectors]).toEqual([
      ['resid_pre.3', Float32Array.from(first)],
      ['resid_pre.2', Float32Array.from(second)],
    ])
    expect(loaded.record).toMatchObject({ model: { id: 'gpt2-small' }, source: { format: 'neuronpedia', label: 'happy', strength: 4 } })
    const last = new SteeringVector([['resid_post.3', first]], record)
    await expect(saveVector(path, last, { format: 'neuronpedia' })).rejects.toThrow("which 'resid_post.3' is not")
    const inside = new SteeringVector([['mlp_out.1', first]], record)
    await expect(saveVector(path, inside, { format: 'neuronpedia' })).rejects.toThrow("which 'mlp_out.1' is not")
  })

  it('is read under all the names that its parts use', async () => {
    const path = join(temporaryFolder(), 'a.json')
    const cases: [object, string][] = [
      [
        { label: 'x', model_id: 'm', layer_num: 20, hook_type: 'hook_resid_pre', vector: [1, 2], default_steer_strength: 44 },
        'resid_pre.20',
      ],
      [{ label: 'x', modelId: 'm', source: '7-custom', index: '3', values: [1, 2], hookName: 'blocks.7.hook_resid_post' }, 'resid_post.7'],
      [{ modelId: 'm', layer: '5-res', vector: [1, 2], hookName: 'hook_mlp_out' }, 'mlp_out_post.5'],
    ]
    for (const [value, site] of cases) {
      await writeFile(path, JSON.stringify(value))
      const vector = await loadVector(path)
      expect([vector.sites, vector.record.model.id]).toEqual([[site], 'm'])
    }
    const refused = async (value: unknown, message: RegExp) => {
      await writeFile(path, JSON.stringify(value))
      await expect(loadVector(path)).rejects.toThrow(message)
      await expect(loadVector(path)).rejects.toBeInstanceOf(FormatError)
    }
    const good = { modelId: 'm', layer: 1, hookType: 'hook_resid_pre', vector: [1] }
    await refused({ ...good, hookType: 'hook_nowhere' }, /hook 'hook_nowhere' of layer '1', which is no site/)
    await refused({ ...good, layer: undefined }, /give hook_type and layer_num/)
    await refused({ ...good, vector: ['1'] }, /is not a list of numbers/)
    await refused([good, good], /two vectors at 'resid_pre.1'/)
    await refused([good, { ...good, layer: 2, modelId: 'n' }], /several models/)
    await refused({ hello: 1 }, /neither a Neuronpedia vector nor a SteeringSpec/)
  })
})

describe('EasySteer', () => {
  const spec = () =>
    new SteeringVector(
      [
        ['resid_post.10', [1.5, -2]],
        ['resid_post.2', [0.25, 3]],
      ],
      record,
    )

  it('gets a SteeringSpec whose hash its engine computes too, and gives it back', async () => {
    expect(await encodeEasySteer(spec(), { scale: 2 })).toEqual({
      vectors: [
        {
          data: {
            version: 1,
            kind: 'direction',
            tensors: { 'layer.10': { shape: [2], data: 'AADAPwAAAMA=' }, 'layer.2': { shape: [2], data: 'AACAPgAAQEA=' } },
            extra: {},
            // By a transcription of its `_wire_digest` in Python.
            sha256: 'ecebfe75091b6062c6d18454b2b1b63b45545d20a762d043d6440f536be18303',
          },
          algorithm: 'direct',
          scale: 2,
          layers: [2, 10],
          normalize: false,
          apply: { prompt: 'all', generation: 'all' },
          params: {},
        },
      ],
      conflict: 'priority',
    })
    const path = join(temporaryFolder(), 'a.json')
    await saveVector(path, spec(), { format: 'easysteer', scale: 2 })
    const loaded = await loadVector(path)
    expect([...loaded.vectors]).toEqual([...spec().times(2).vectors])
    expect(loaded.record.source).toEqual({ format: 'easysteer', apply: '{"prompt":"all","generation":"all"}' })
    const inside = new SteeringVector([['mlp_out.1', first]], record)
    await expect(saveVector(path, inside, { format: 'easysteer' })).rejects.toThrow("not to 'mlp_out.1'")
  })

  it('is refused where it does more than add, or is not what it says', async () => {
    const path = join(temporaryFolder(), 'a.json')
    const whole = (await encodeEasySteer(spec())) as { vectors: [Record<string, unknown>]; conflict: string }
    const [vector] = whole.vectors
    const data = vector.data as { tensors: Record<string, unknown>; sha256: string }
    const load = async (value: unknown) => {
      await writeFile(path, JSON.stringify(value))
      return loadVector(path)
    }
    expect((await load(data)).sites).toEqual(['resid_post.10', 'resid_post.2'])
    expect((await load({ vectors: [{ ...vector, layers: [2] }] })).sites).toEqual(['resid_post.2'])
    const twice = [vector, { ...vector, scale: -3 }]
    expect((await load({ vectors: twice, conflict: 'sequential' })).at('resid_post.2')).toEqual(Float32Array.of(-0.5, -6))
    const cases: [unknown, RegExp][] = [
      [{ vectors: twice }, /several vectors for layer 10 and does not add them up \(conflict 'priority'\)/],
      [{ vectors: [{ ...vector, algorithm: 'erase' }] }, /the algorithm 'erase'/],
      [{ vectors: [{ ...vector, normalize: true }] }, /with normalize/],
      [{ vectors: [{ source: 'x.gguf', apply: {} }] }, /names the file x.gguf/],
      [{ vectors: [{ apply: {} }] }, /a vector without data/],
      [{ vectors: [] }, /at least one site/],
      [{ ...data, kind: 'linear' }, /a payload 'linear' of version 1/],
      [{ ...data, version: 2 }, /of version 2/],
      [{ ...data, sha256: '0' }, /not what its hash promises/],
    ]
    for (const [value, message] of cases) await expect(load(value), String(message)).rejects.toThrow(message)
  })
})

describe('names and options', () => {
  it('of files that cannot be are refused', async () => {
    const folder = temporaryFolder()
    const save = (name: string, options: object = {}) => saveVector(join(folder, name), blocks(), options)
    await expect(save('a.bin')).rejects.toThrow('end it in .safetensors or .gguf, or give a format')
    await expect(save('a.json')).rejects.toThrow('give a format')
    await expect(save('a.safetensors', { format: 'pickle' })).rejects.toThrow("There is no vector format 'pickle'")
    await expect(save('a.safetensors', { producer: 'repeng' })).rejects.toThrow(
      "The format 'safetensors' has no option 'producer'; it has none.",
    )
    await expect(save('a.gguf', { label: 'x' })).rejects.toThrow("has no option 'label'; its own are producer, allowLayerZero, record.")
    for (const name of ['no/a.gguf', 'no/a.safetensors']) {
      await expect(save(name)).rejects.toThrow(/does not exist: create it first/)
      await expect(save(name)).rejects.toBeInstanceOf(UsageError)
    }
    expect(await readdir(folder)).toEqual([])
    await expect(loadVector(join(folder, 'a.bin'))).rejects.toThrow('does not say what the file holds')
    await expect(loadVector(join(folder, 'a.json'))).rejects.toThrow('does not exist')
    await expect(loadVector(join(folder, 'a.gguf'))).rejects.toThrow(/a\.gguf/)
    await writeFile(join(folder, 'b.json'), '{}')
    await expect(loadVector(join(folder, 'b.json'), { format: 'neuronpedia' })).rejects.toThrow('holds no Neuronpedia vector')
    await save('plain', { format: 'gguf' })
    same(await loadVector(join(folder, 'plain'), { format: 'gguf' }), blocks())
    await expect(loadVector(join(folder, 'plain'), { format: 'safetensors', layerShift: 1 })).rejects.toThrow("has no option 'layerShift'")
  })
})
