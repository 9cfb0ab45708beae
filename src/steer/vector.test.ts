import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { tinyModel } from '../run/testing.ts'
import { add } from '../sites/index.ts'
import { canonicalJson, SteeringVector, steer, type VectorRecord } from './index.ts'
import { cosine, gaussianRows, length, plantedModel, relativeError } from './testing.ts'

const record: VectorRecord = { method: 'mean-difference', model: { id: 'a', hash: '1'.repeat(64) }, sites: [] }
const vectorOf = (directions: Record<string, readonly number[]>, more: Partial<VectorRecord> = {}) =>
  new SteeringVector(Object.entries(directions), { ...record, ...more })
const arbitrary = fc.array(fc.array(fc.float({ min: -10, max: 10, noNaN: true }), { minLength: 5, maxLength: 5 }), {
  minLength: 2,
  maxLength: 2,
})
const of = ([a, b]: readonly number[][]) => vectorOf({ 'resid_post.1': a as number[], 'resid_post.2': b as number[] })

describe('algebra', () => {
  it('keeps the laws of a vector space, site by site', () => {
    fc.assert(
      fc.property(arbitrary, arbitrary, (x, y) => {
        const [a, b] = [of(x), of(y)]
        for (const site of a.sites) {
          expect(
            a
              .plus(b)
              .minus(b)
              .minus(a)
              .at(site)
              .every((v) => Math.abs(v) < 1e-5),
          ).toBe(true)
          expect(a.plus(b).at(site)).toEqual(b.plus(a).at(site))
          expect(a.times(2).at(site)).toEqual(a.plus(a).at(site))
          expect(a.times(1).at(site)).toEqual(a.at(site))
          expect(a.minus(b).at(site)).toEqual(a.plus(b.times(-1)).at(site))
        }
      }),
      { numRuns: 50, seed: 1 },
    )
  })

  it('splits a vector into what lies along another and what is orthogonal', () => {
    const [x, y] = [of(gaussianRows(2, 5, 1)), of(gaussianRows(2, 5, 2))]
    const [along, across] = [x.projectedOn(y), x.orthogonalTo(y)]
    for (const site of x.sites) {
      expect(relativeError(along.plus(across).at(site), x.at(site))).toBeLessThan(1e-6)
      expect(Math.abs(across.cosine(y, site))).toBeLessThan(1e-6)
      expect(Math.abs(along.cosine(y, site))).toBeCloseTo(1, 6)
      expect(x.cosine(y, site)).toBeCloseTo(cosine(x.at(site), y.at(site)), 6)
      expect(length(x.normalized().at(site))).toBeCloseTo(1, 6)
      expect(length(x.normalized(3).at(site))).toBeCloseTo(3, 5)
      expect(x.norms.get(site)).toBeCloseTo(length(x.at(site)), 6)
    }
  })

  it('keeps sites that only one has', () => {
    const [a, b] = [vectorOf({ 'resid_post.1': [1, 2] }), vectorOf({ 'resid_post.1': [1, 0], 'mlp_out.0': [3, 4, 5] })]
    const sum = a.minus(b)
    expect(sum.sites).toEqual(['resid_post.1', 'mlp_out.0'])
    expect([...sum.at('resid_post.1')]).toEqual([0, 2])
    expect([...sum.at('mlp_out.0')]).toEqual([-3, -4, -5])
    expect(b.only(['mlp_out.0']).record.sites).toEqual(['mlp_out.0'])
    expect(a.cosine(b)).toBeCloseTo(1 / Math.sqrt(5), 6)
  })

  it('leaves its parts alone, and records them: sums as one sum', () => {
    const [a, b] = [vectorOf({ 'resid_post.1': [1, 2] }), vectorOf({ 'resid_post.1': [3, 5] }, { method: 'lda' })]
    const source = Float32Array.of(1, 2)
    const own = new SteeringVector([['resid_post.1', source]], record)
    source[0] = 9
    expect([...own.at('resid_post.1')]).toEqual([1, 2])
    const sum = a.times(2).minus(b.times(0.5).plus(a))
    expect([...a.at('resid_post.1')]).toEqual([1, 2])
    expect(sum.record.method).toBe('combination')
    expect(sum.record.parts?.map((p) => [p.factor, p.record.method])).toEqual([
      [2, 'mean-difference'],
      [-0.5, 'lda'],
      [-1, 'mean-difference'],
    ])
    const made = sum.orthogonalTo(b).record
    expect([made.method, made.model.id, made.parts?.map((p) => p.record.method)]).toEqual(['orthogonal', 'a', ['combination', 'lda']])
  })

  it('refuses what has no answer', () => {
    const [a, zero] = [vectorOf({ 'resid_post.1': [1, 2] }), vectorOf({ 'resid_post.1': [0, 0] })]
    const cases: [() => unknown, RegExp][] = [
      [() => a.at('resid_post.2'), /no direction at 'resid_post.2'; did you mean 'resid_post.1'/],
      [() => a.only(['z.0']), /no direction at 'z.0'/],
      [() => a.times(Number.NaN), /cannot be multiplied by NaN/],
      [() => zero.normalized(), /The vector is zero at 'resid_post.1'/],
      [() => a.projectedOn(zero), /The vector is zero at 'resid_post.1'/],
      [() => a.cosine(zero), /The vector is zero/],
      [() => a.plus(vectorOf({ 'resid_post.1': [1, 2, 3] })), /2 and 3 wide at 'resid_post.1'/],
      [() => a.orthogonalTo(vectorOf({ 'resid_post.2': [1, 2] })), /no direction at 'resid_post.1'/],
      [() => a.cosine(vectorOf({ 'resid_post.2': [1, 2] })), /no site in common/],
      [() => of([[1], [1]]).cosine(of([[1], [1]])), /2 sites in common \(resid_post.1, resid_post.2\); name the one/],
      [() => a.plus(vectorOf({ 'resid_post.1': [1, 2] }, { model: { id: 'b', hash: '2'.repeat(64) } })), /different models, a and b/],
      [() => vectorOf({}), /at least one site/],
      [() => vectorOf({ 'resid_post.1': [] }), /is empty/],
      [() => vectorOf({ 'resid_post.1': [1, Number.NaN] }), /holds NaN at 1/],
      [() => vectorOf({ 'resid_post.1': [1e39] }), /holds Infinity at 0/],
      [() => vectorOf({ 'resid_post.*': [1] }), /'resid_post.\*' is no site that a vector can have/],
      [() => vectorOf({ resid_post: [1] }), /is no site/],
      [() => vectorOf({ 'final_norm.1': [1] }), /is no site/],
      [() => vectorOf({ 'blocks.1.hook_resid_post': [1] }), /write its canonical name/],
      [() => vectorOf({ 'attn_probs.1': [1] }), /cannot be steered by a vector/],
      [() => vectorOf({ 'expert_weights.1': [1] }), /mean other experts at every position/],
      [() => a.edits({ scale: Number.POSITIVE_INFINITY }), /must be a finite number/],
      [() => a.edits({ scale: 3e38 }), /The strength 3e\+38 overflows at 'resid_post.1', where the vector reaches 2/],
      [() => zero.edits(), /adding it would change nothing/],
      [() => a.edits({ sites: ['resid_post.3'] }), /no direction at 'resid_post.3'/],
    ]
    for (const [work, message] of cases) expect(work, String(message)).toThrow(message)
    for (const [work] of cases) expect(work).toThrow(/[.?]$/)
  })
})

describe('steering', () => {
  const direction = () => gaussianRows(1, 32)[0] as number[]

  it('adds the vector, with a strength that compiles nothing, where it is told to', async () => {
    await using model = await tinyModel()
    const vector = vectorOf({ 'resid_post.1': direction(), 'mlp_out.0': direction() })
    const logits = async (m: typeof model) => (await m.run({ ids: [4, 8, 15, 16] })).logits.data
    const byHand = model.with(add('resid_post.1', direction(), { scale: 3 }), add('mlp_out.0', direction(), { scale: 3 }))
    expect(await logits(model.with(vector.edits({ scale: 3 })))).toEqual(await logits(byHand))
    const { compiled } = model.statistics
    expect(await logits(model.with(vector.edits({ scale: 0 })))).toEqual(await logits(model))
    await logits(model.with(vector.times(7).edits({ scale: -2 })))
    expect(model.statistics.compiled - compiled).toBe(1)
    const one = vector.only(['mlp_out.0'])
    expect(await logits(model.with(add('mlp_out.0', one, { scale: 3 })))).toEqual(await logits(model.with(one.edits({ scale: 3 }))))
    expect(() => model.with(add('mlp_out.0', vector))).toThrow('This vector has 2 directions (resid_post.1, mlp_out.0); use vector.edits()')
    const where = { positions: -1 }
    const only = model.with(add('mlp_out.0', direction(), { where }))
    expect(await logits(model.with(vector.edits({ where, sites: ['mlp_out.0'] })))).toEqual(await logits(only))
    expect(JSON.parse(canonicalJson(vector.edits({ scale: 2, where })))[0]).toEqual({
      op: 'add',
      site: 'resid_post.1',
      params: { vector: [...Float32Array.from(direction())], scale: 2 },
      where,
    })
  })

  it('refuses another model, unless told otherwise, and another width in any case', async () => {
    await using model = await plantedModel(gaussianRows(4, 32))
    const own = vectorOf({ 'resid_post.1': direction() }, { model: { id: 'planted', hash: 'a'.repeat(64) } })
    const steered = await steer(model, own, { scale: 2, where: { phase: 'prompt' } })
    expect(steered.edits).toMatchObject([{ op: 'add', site: 'resid_post.1', where: { phase: 'prompt' } }])
    const other = vectorOf({ 'resid_post.1': direction() })
    await expect(steer(model, other)).rejects.toThrow(
      'The vector was measured on a, whose files have another hash than those of planted; extract it anew on this model, or set allowOtherModel',
    )
    expect((await steer(model, other, { allowOtherModel: true })).edits).toHaveLength(1)
    const hinted = vectorOf({ 'resid_post.1': direction() }, { model: { id: 'b', family: 'gpt2' } })
    await expect(steer(model, hinted)).rejects.toThrow("a model of the family 'gpt2', but planted is of 'llama'")
    await steer(model, vectorOf({ 'resid_post.1': direction() }, { model: { id: 'b' } }))
    const wide = vectorOf({ 'resid_post.1': [1, 2, 3], 'resid_post.0': direction() })
    await expect(steer(model, wide, { allowOtherModel: true })).rejects.toThrow(
      "3 wide at 'resid_post.1', but the site is 32 wide in planted",
    )
    expect((await steer(model, wide, { allowOtherModel: true, sites: ['resid_post.0'] })).edits).toHaveLength(1)
    await expect(steer(model, vectorOf({ 'resid_post.9': direction() }))).rejects.toThrow('layer 9')
  })
})
