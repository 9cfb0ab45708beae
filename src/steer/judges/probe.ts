/** @file A judge by a probe: what it reads in the unsteered model's activations of the text that was written. */
import { ShapeError, UsageError } from '../../base/errors.ts'
import { readFeatures } from '../../probe/features.ts'
import type { Probe } from '../../probe/probe.ts'
import { canonicalJson } from '../record.ts'
import { widthOf } from '../vector.ts'
import type { SteeringJudge } from './judge.ts'

/**
 * Score of a probe of two classes (positive means the second) or of a regression. The text is read by the model without steering, since
 * a vector along the probe would raise the score of any text.
 */
export function probeJudge(probe: Probe): SteeringJudge {
  if (probe.outputs !== 1)
    throw new UsageError(`A judge gives one number, but this probe has ${probe.outputs} classes; train one class against the rest.`)
  return {
    name: `probe at ${probe.site}`,
    unit: 'score of the probe',
    key: canonicalJson({ site: probe.site, weights: probe.weights, bias: probe.bias, position: probe.record.position }),
    reads: 'texts',
    score: async ({ unsteered, texts, signal, onProgress }) => {
      const info = unsteered.site(probe.site)
      const width = widthOf(unsteered, info)
      if (width !== probe.width)
        throw new ShapeError(`The probe reads ${probe.width} numbers at '${probe.site}', but the site is ${width} wide in this model.`)
      const { sites } = await readFeatures(unsteered, {
        texts: texts.map((t) => t.prompt + t.text),
        site: info.site,
        position: probe.record.position,
        ...(signal ? { signal } : {}),
        ...(onProgress ? { onProgress } : {}),
      })
      return Array.from(await probe.scores(sites.get(info.site) as NonNullable<ReturnType<typeof sites.get>>))
    },
  }
}
