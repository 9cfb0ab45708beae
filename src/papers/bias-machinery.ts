/** @file The probing pipeline of the paper on features whose truth is known: labels of noise, and a planted shift. */
import { RandomStream } from '../nn/index.ts'
import { type Features, fitLinear, type LinearProblem, scoresOf } from '../probe/solver.ts'
import { areaUnderRoc } from '../steer/maps/closed-form.ts'
import { normalCdf } from './statistics.ts'

const examples = { all: 140, train: 98, width: 1280 } as const

/** Features of unit noise, the first `n` of class 1 shifted along one axis. */
function features(random: RandomStream, shift: number, width: number): { x: Features; labels: Int8Array } {
  const labels = Int8Array.from({ length: examples.all }, (_, i) => i % 2)
  const data = new Float32Array(examples.all * width)
  for (let i = 0; i < data.length; i++) data[i] = random.normal()
  for (const [i, l] of labels.entries()) (data[i * width] as number) += (l - 0.5) * shift
  return { x: { dtype: 'float32', shape: [examples.all, width], data }, labels }
}

const part = (v: Float32Array, labels: Int8Array, members: readonly number[], label: number) =>
  Float64Array.from(
    members.filter((i) => labels[i] === label),
    (i) => v[i] as number,
  )

const aurocOf = (scores: Float32Array, labels: Int8Array, members: readonly number[]) =>
  areaUnderRoc(part(scores, labels, members, 1), part(scores, labels, members, 0))

/** Scores of the difference of the class means of some examples. */
async function meanDifferenceScores({ x, labels }: { x: Features; labels: Int8Array }, train: readonly number[]): Promise<Float32Array> {
  const [, width] = x.shape as [number, number]
  const w = new Float32Array(width)
  const counts = [0, 0]
  for (const i of train) counts[labels[i] as number]!++
  for (const i of train) {
    const factor = labels[i] === 1 ? 1 / (counts[1] as number) : -1 / (counts[0] as number)
    for (let j = 0; j < width; j++) w[j] = (w[j] as number) + factor * (x.data[i * width + j] as number)
  }
  return scoresOf(x, w, 1)
}

/** Scores of the published pipeline: scaled features, L2 logistic regression of C = 1. */
async function pipelineScores({ x, labels }: { x: Features; labels: Int8Array }, train: readonly number[]): Promise<Float32Array> {
  const inside = new Set(train)
  const problem: LinearProblem = {
    loss: 'logistic',
    weights: Float64Array.from(labels, (_, i) => (inside.has(i) ? 1 : 0)),
    targets: Float64Array.from(labels, (l) => 2 * l - 1),
    outputs: 1,
    l2: 1,
    l1: 0,
    standardise: true,
  }
  const [fitted] = await fitLinear(x, [problem])
  return scoresOf(x, Float32Array.from((fitted as { weights: Float64Array }).weights), 1)
}

/** Areas of many sites on labels of pure noise: the mean, the best by its own test score, and that of the site that inner folds choose. */
export async function pipelineOnNoise(seed: number, sites: number): Promise<{ mean: number; best: number; nested: number }> {
  const width = 256
  const tests: number[] = []
  const inner: number[] = []
  const train = Array.from({ length: examples.train }, (_, i) => i)
  const test = Array.from({ length: examples.all - examples.train }, (_, i) => examples.train + i)
  for (let s = 0; s < sites; s++) {
    const data = features(RandomStream.named(seed, `noise ${s}`), 0, width)
    tests.push(aurocOf(await meanDifferenceScores(data, train), data.labels, test))
    const folds = [0, 1, 2, 3, 4]
    let score = 0
    for (const f of folds) {
      const held = train.filter((i) => Math.floor(i / 2) % folds.length === f)
      const rest = train.filter((i) => Math.floor(i / 2) % folds.length !== f)
      score += aurocOf(await meanDifferenceScores(data, rest), data.labels, held) / folds.length
    }
    inner.push(score)
  }
  // The site that inner folds choose is judged by the held-out texts of every choice of one of the best, so that one lucky draw does not decide.
  const ranked = inner.map((_, i) => i).sort((a, b) => (inner[b] as number) - (inner[a] as number))
  const top = ranked.slice(0, Math.max(1, Math.floor(sites / 6)))
  return {
    mean: tests.reduce((a, b) => a + b, 0) / sites,
    best: Math.max(...tests),
    nested: top.reduce((s, i) => s + (tests[i] as number), 0) / top.length,
  }
}

/** A planted shift: the law of the mean difference, Φ(δ² / (√2 √(δ² + 4d/n))), and what is measured. */
export async function shiftLaw(
  seed: number,
  repeats: number,
): Promise<{ shift: number; law: number; measured: number; pipeline: number }[]> {
  const out = []
  for (const shift of [2, 3, 5]) {
    let [measured, pipeline] = [0, 0]
    for (let r = 0; r < repeats; r++) {
      const data = features(RandomStream.named(seed, `shift ${shift} ${r}`), shift, examples.width)
      const train = Array.from({ length: examples.train }, (_, i) => i)
      const test = Array.from({ length: examples.all - examples.train }, (_, i) => examples.train + i)
      measured += aurocOf(await meanDifferenceScores(data, train), data.labels, test) / repeats
      pipeline += aurocOf(await pipelineScores(data, train), data.labels, test) / repeats
    }
    out.push({
      shift,
      law: normalCdf(shift ** 2 / (Math.SQRT2 * Math.sqrt(shift ** 2 + (4 * examples.width) / examples.train))),
      measured,
      pipeline,
    })
  }
  return out
}
