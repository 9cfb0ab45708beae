/** @file Probes read live: what each says of every token while a model writes. */
import { UsageError } from '../base/errors.ts'
import type { Activation, GenerateOptions, GenerationStep, Model, ModelInput } from '../run/index.ts'
import type { Probe } from './probe.ts'

/** What a probe said at the position that chose a token. */
export interface LiveReading {
  readonly probe: Probe
  /** [outputs]: for two classes positive means the second, for a regression the number. */
  readonly scores: Float64Array
  /** The class, or the number of a regression. */
  readonly told: string | number
  /** Probability of the second class, where the probe is calibrated. */
  readonly probability?: number
}

/** A step of a generation with what the probes said. */
export interface LiveStep extends GenerationStep {
  /** In the order of the probes, at the position whose logits chose the token. */
  readonly readings: readonly LiveReading[]
  /** The same for every position of the prompt, [pos][probe]; with the first step of each row. */
  readonly prompt?: readonly (readonly LiveReading[])[]
}

/**
 * Lets a model write and reads probes at every step. The probes' sites are tapped in the passes that write, so that reading costs no run.
 * @throws UsageError for probes that read a mean over the text, which is not known before its end.
 */
export async function* generateWithProbes(
  model: Model,
  prompt: ModelInput,
  options: GenerateOptions & { readonly probes: readonly Probe[] },
): AsyncGenerator<LiveStep, void, undefined> {
  const { probes, taps = [], ...rest } = options
  if (probes.length === 0) throw new UsageError('There are no probes to read; give at least one, or call generate().')
  const mean = probes.find((p) => p.record.position === 'mean')
  if (mean)
    throw new UsageError(
      `The probe at '${mean.site}' learned from means over whole texts, which no single token has; train one with position 'last'.`,
    )
  const started = new Set<number>()
  const sites = probes.map((p) => model.site(p.site).site)
  for await (const step of model.generate(prompt, { ...rest, taps: [...taps, ...new Set(sites)] }).steps()) {
    const at = (position: number) =>
      Promise.all(probes.map((p, i) => readingOf(p, step.taps[sites[i] as string] as Activation, step.row, position)))
    if (started.has(step.row)) yield { ...step, readings: await at(-1) }
    else {
      started.add(step.row)
      const length = (step.taps[sites[0] as string] as Activation).lengths[step.row] as number
      const all: LiveReading[][] = []
      for (let p = 0; p < length; p++) all.push(await at(p))
      yield { ...step, readings: all.at(-1) as LiveReading[], prompt: all }
    }
  }
}

async function readingOf(probe: Probe, value: Activation, row: number, position: number): Promise<LiveReading> {
  const x = Float32Array.from(value.at(row, position))
  const scores = await probe.scores(x)
  const [told] = await probe.predict(x)
  const [probability] = probe.calibration ? await probe.probabilities(x) : []
  return { probe, scores, told: told as string | number, ...(probability === undefined ? {} : { probability }) }
}
