/** @file Samples over seeds, plain and steered, and what colours their tokens. */
import type { DivergenceAnswer, ProbeReadAnswer, RequestOf } from '../../../../src/server/protocol.ts'
import { post } from '../../lib/api.ts'
import { type Stories, type storyRequest, writeStories } from '../look/stories.ts'

/** A number for each written token of the plain and of the steered text; undefined where there is none. */
export type Colouring = readonly [plain: readonly number[] | undefined, steered: readonly number[] | undefined]

/** Writes one pair of texts after the other; the list grows as they are written. */
export async function writeSamples(
  request: ReturnType<typeof storyRequest>,
  count: number,
  signal: AbortSignal,
  put: (samples: readonly Stories[]) => void,
): Promise<void> {
  const samples: Stories[] = []
  for (let i = 0; i < count; i++)
    // The two rows of a pair draw from the streams seed and seed + 1.
    await writeStories({ ...request, seed: request.seed + 2 * i }, signal, (stories) => {
      samples[i] = stories
      put([...samples])
    })
}

const idsOf = ({ ids, rows }: Stories, side: number) => [...ids, ...(rows[side] ?? []).map((t) => t.id)]

/** Colours that were found before, since texts come one after the other and the first ones stay. */
const found = new Map<string, Colouring>()
const kept = 64

async function coloured(
  samples: readonly Stories[],
  question: unknown,
  ask: (sample: Stories) => Promise<Colouring>,
  put: (colours: readonly Colouring[]) => void,
): Promise<void> {
  const colours: Colouring[] = []
  for (const sample of samples) {
    const key = JSON.stringify([question, sample.rows.map((_, side) => idsOf(sample, side))])
    const values = found.get(key) ?? (await ask(sample))
    found.set(key, values)
    for (const old of found.keys()) if (found.size > kept) found.delete(old)
    colours.push(values)
    put([...colours])
  }
}

/** The divergence from the plain model that each steered token was drawn under. */
export function colourByKl(
  samples: readonly Stories[],
  body: Omit<RequestOf<'divergence'>, 'ids'>,
  signal: AbortSignal,
  put: (colours: readonly Colouring[]) => void,
): Promise<void> {
  const ask = async (sample: Stories): Promise<Colouring> => {
    const { kl } = await post<DivergenceAnswer, 'divergence'>('divergence', { ...body, ids: idsOf(sample, 1) }, signal)
    return [undefined, kl.slice(sample.ids.length).map((v) => v ?? 0)]
  }
  return coloured(samples, body, ask, put)
}

/** The score of a probe at each token of both texts. */
export function colourByProbe(
  samples: readonly Stories[],
  body: Omit<RequestOf<'probe-read'>, 'ids'>,
  signal: AbortSignal,
  put: (colours: readonly Colouring[]) => void,
): Promise<void> {
  const ask = async (sample: Stories): Promise<Colouring> => {
    const sides = []
    for (const side of sample.rows.keys()) {
      const { scores } = await post<ProbeReadAnswer, 'probe-read'>('probe-read', { ...body, ids: idsOf(sample, side) }, signal)
      sides.push(scores.slice(sample.ids.length).map((row) => row[0] ?? 0))
    }
    return [sides[0], sides[1]]
  }
  return coloured(samples, body, ask, put)
}
