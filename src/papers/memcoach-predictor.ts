/** @file A predictor of memorability that looks at pixels, trained on the coach's own vision tower, as a second judge of its advice. */
import { RandomStream } from '../nn/index.ts'
import type { Model } from '../run/index.ts'
import { turnsInput } from '../steer/index.ts'
import { type ImageFeatures, imageFeatures, MemorabilityHead } from '../vision/index.ts'
import type { Advice } from './memcoach-loop.ts'
import { rankCorrelation } from './statistics.ts'
import type { Study } from './study.ts'
import { edited, memorability, type Photo, photoPrompt, randomPhoto } from './toys/photos.ts'

/** Features of photos, each rendered anew. */
function featuresOf(model: Model, photos: readonly Photo[], random: RandomStream, study: Study): Promise<ImageFeatures> {
  const batches = Array.from({ length: Math.ceil(photos.length / 50) }, (_, i) =>
    turnsInput(photos.slice(50 * i, 50 * (i + 1)).map((p) => photoPrompt('pixels', p, random))),
  )
  return imageFeatures(model, batches, study.work)
}

/** A second judge. */
export interface Predictor {
  /** Rank correlation of its scores with M on photos that it was not trained on. */
  readonly correlation: number
  /** Share of photos to which it gives a higher score when they are edited and rendered anew. */
  improved(photos: readonly Photo[], advice: readonly Advice[]): Promise<number>
}

/** Trains the predictor on rendered photos and their M. */
export async function predictorOf(model: Model, study: Study): Promise<Predictor> {
  const random = RandomStream.named(study.seed, 'predictor')
  const drawn = (count: number) => Array.from({ length: count }, () => randomPhoto(random))
  const [seen, others] = [drawn(800), drawn(300)]
  const head = await MemorabilityHead.train({
    features: await featuresOf(model, seen, random, study),
    scores: seen.map(memorability),
    hidden: 64,
    rate: 1e-3,
    seed: study.seed,
    ...study.work,
  })
  const score = async (photos: readonly Photo[]) => head.predict(await featuresOf(model, photos, random, study))
  return {
    correlation: rankCorrelation(await score(others), others.map(memorability)),
    improved: async (photos, advice) => {
      const before = await score(photos)
      const after = await score(photos.map((p, i) => edited(p, (advice[i] as Advice).list)))
      return after.filter((v, i) => v > (before[i] as number)).length / photos.length
    },
  }
}
