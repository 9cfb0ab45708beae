/** @file The table of methods that make a steering vector from positive and negative examples. */
import { nearest, UsageError } from '../base/errors.ts'
import type { Model } from '../run/model.ts'
import type { Extract, ExtractOptions } from './extract.ts'
import { type LatOptions, lat } from './lat.ts'
import { type LdaOptions, lda } from './lda.ts'
import { type LogisticOptions, logistic } from './logistic.ts'
import { meanDifference } from './mean-difference.ts'
import { pcaCentred, pcaDifference } from './pca.ts'
import { reading } from './reading.ts'
import type { SteeringVector } from './vector.ts'

/** What the table knows about a method. */
export interface SteeringMethod<Options extends ExtractOptions = ExtractOptions> {
  /** One sentence for help and docs. */
  readonly doc: string
  /** Each positive example belongs to the negative one at the same place. */
  readonly paired: boolean
  /** Names of the options that only this method has. */
  readonly options: readonly string[]
  readonly extract: Extract<Options>
}

const row = <Options extends ExtractOptions>(method: SteeringMethod<Options>) => method

/** Methods by the name that records and the command line use. */
export const steeringMethods = {
  'mean-difference': row({
    doc: 'Mean of the positive less mean of the negative activations.',
    paired: false,
    options: [],
    extract: meanDifference,
  }),
  reading: row({
    doc: 'Mean of the positive activations; the negative ones are not read.',
    paired: false,
    options: [],
    extract: reading,
  }),
  'pca-diff': row({
    doc: 'First principal component of the differences of pairs, centred (repeng).',
    paired: true,
    options: [],
    extract: pcaDifference,
  }),
  'pca-center': row({
    doc: 'First principal component of pairs about their midpoints (repeng).',
    paired: true,
    options: [],
    extract: pcaCentred,
  }),
  logistic: row<LogisticOptions>({
    doc: 'Normal of an L2-regularised logistic regression.',
    paired: false,
    options: ['C', 'paired'],
    extract: logistic,
  }),
  lda: row<LdaOptions>({
    doc: "Normal of Fisher's discriminant with a shrunk covariance.",
    paired: false,
    options: ['shrinkage'],
    extract: lda,
  }),
  lat: row<LatOptions>({
    doc: 'First principal component of the differences of random pairs.',
    paired: false,
    options: ['seed'],
    extract: lat,
  }),
}

/** Names of methods. */
export type SteeringMethodName = keyof typeof steeringMethods

/** The short name that the command line takes for the usual form. */
const aliases: Readonly<Record<string, SteeringMethodName>> = { pca: 'pca-diff', mean: 'mean-difference', 'pca-centre': 'pca-center' }

/** A method of the table by its name or alias; refuses others. */
export function steeringMethod(name: string): SteeringMethod {
  const known = Object.hasOwn(aliases, name) ? (aliases[name] as SteeringMethodName) : name
  if (Object.hasOwn(steeringMethods, known)) return steeringMethods[known as SteeringMethodName] as SteeringMethod
  const names = Object.keys(steeringMethods)
  const near = nearest(name, names)
  throw new UsageError(`There is no method '${name}'${near ? `; did you mean '${near}'?` : '.'} Methods are ${names.join(', ')}.`)
}

/** Options of {@link extractVector}: the method, and what it takes. */
export type ExtractVectorOptions = { readonly method?: string } & ExtractOptions &
  Partial<Omit<LatOptions & LdaOptions & LogisticOptions, keyof ExtractOptions>>

/**
 * Makes a vector by a method of the table (default `mean-difference`).
 * @throws UsageError, SiteError with what is wrong with the examples, the site or the method.
 */
export async function extractVector(model: Model, options: ExtractVectorOptions): Promise<SteeringVector> {
  const { method = 'mean-difference', ...rest } = options
  const { extract, options: own } = steeringMethod(method)
  const others = Object.values(steeringMethods).flatMap((m) => m.options)
  const stray = others.find((o) => !own.includes(o) && rest[o as keyof typeof rest] !== undefined)
  if (stray)
    throw new UsageError(
      `The method '${method}' has no option '${stray}'; ${own.length > 0 ? `its own are ${own.join(', ')}` : 'leave it out'}.`,
    )
  return extract(model, rest)
}
