/** @file The measures of similarity as a table: how one side is prepared, and how two prepared sides are compared. */
import type { DoubleMatrix } from '../../tensor/index.ts'
import { type CanonicalSide, canonicalSide, correlateSides } from './canonical.ts'
import { centredGram } from './cka.ts'
import { innerProduct, type Points } from './features.ts'
import { type ProcrustesSide, procrustesSide, rotationSimilarity } from './procrustes.ts'
import { correlateRsa, rsaSide } from './rsa.ts'

/** A measure of how alike two sets of points are that stand for the same places. */
export interface Measure {
  /** One line for help and docs. */
  readonly doc: string
  /** Whether both orders give the same. */
  readonly symmetric: boolean
  /** Prepares one side; the function that is given back compares it with another prepared one. */
  readonly prepare: (x: Points) => Promise<Side>
}

/** A prepared side. */
export interface Side {
  readonly of: unknown
  readonly compare: (other: Side) => Promise<number>
}

function measure<P>(
  doc: string,
  symmetric: boolean,
  prepare: (x: Points) => Promise<P>,
  compare: (a: P, b: P) => Promise<number> | number,
): Measure {
  return {
    doc,
    symmetric,
    async prepare(x) {
      const of = await prepare(x)
      return { of, compare: async (other) => compare(of, other.of as P) }
    },
  }
}

interface Gram {
  readonly gram: DoubleMatrix
  readonly norm: number
}

const gramOf =
  (unbiased: boolean) =>
  async (x: Points): Promise<Gram> => {
    const gram = await centredGram(x, { unbiased })
    return { gram, norm: Math.sqrt(await innerProduct(gram, gram)) }
  }
const alike = async (a: Gram, b: Gram) => (await innerProduct(a.gram, b.gram)) / (a.norm * b.norm)

/** Names of the measures. */
export type MeasureName = 'cka' | 'cka-unbiased' | 'svcca' | 'pwcca' | 'procrustes' | 'rsa'

/** The measures by name; each is 1 for a side and itself. */
export const measures: Readonly<Record<MeasureName, Measure>> = {
  cka: measure('linear centred kernel alignment (Kornblith et al. 2019)', true, gramOf(false), alike),
  'cka-unbiased': measure('the same with the unbiased HSIC, for fewer points than dimensions', true, gramOf(true), alike),
  svcca: measure<CanonicalSide>(
    'mean canonical correlation of the components that hold 99 % of the variance (Raghu et al. 2017)',
    true,
    canonicalSide,
    async (a, b) => (await correlateSides(a, b)).svcca,
  ),
  pwcca: measure<CanonicalSide>(
    'the same weighted by what each direction accounts for of the first side (Morcos et al. 2018)',
    false,
    canonicalSide,
    async (a, b) => (await correlateSides(a, b)).pwcca,
  ),
  procrustes: measure<ProcrustesSide>(
    'how well a rotation carries one side into the other (nuclear norm at norm one)',
    true,
    procrustesSide,
    rotationSimilarity,
  ),
  rsa: measure('rank correlation of the correlation distances of all pairs (Kriegeskorte et al. 2008)', true, rsaSide, correlateRsa),
}
