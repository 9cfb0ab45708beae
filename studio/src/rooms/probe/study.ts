/** @file A study as it comes from the server. */
import type { ProbedSite, ProbeLine, RequestOf } from '../../../../src/server/protocol.ts'
import { lines } from '../../lib/api.ts'

/** A study as far as it has come. */
export interface Study {
  readonly examples: number
  readonly total: number
  readonly sites: readonly ProbedSite[]
  /** What goes on now. */
  readonly task: string
  readonly end?: Extract<ProbeLine, { type: 'end' }>
}

/** Asks for a study and hands it on site by site. */
export async function readStudy(request: RequestOf<'probe'>, signal: AbortSignal, put: (study: Study) => void): Promise<void> {
  let study: Study | undefined
  for await (const batch of lines<ProbeLine>('probe', request, signal)) {
    for (const line of batch) {
      if (line.type === 'head') study = { examples: line.examples, total: line.sites, sites: [], task: 'reading the texts' }
      else if (!study) continue
      else if (line.type === 'progress')
        study = { ...study, task: `${line.task}, ${line.done}${line.total === undefined ? '' : ` of ${line.total}`} ${line.unit}` }
      else if (line.type === 'site') study = { ...study, sites: [...study.sites, line] }
      else study = { ...study, end: line }
    }
    if (study) put(study)
  }
}

/** The score that counts: accuracy of classes, else R². */
export const mainScore = (site: ProbedSite | undefined) => (site ? (site.scores.accuracy ?? site.scores.r2) : undefined)

/** Controls in words. */
export const controlWords: Readonly<Record<string, string>> = {
  shuffledLabels: 'shuffled labels',
  randomFeatures: 'random features',
  tokenIdentity: 'the tokens alone',
}

/** The site with the best score; the first of equals. */
export function best(sites: readonly ProbedSite[]): ProbedSite | undefined {
  let found: ProbedSite | undefined
  for (const site of sites) if (!found || (mainScore(site)?.value ?? 0) > (mainScore(found)?.value ?? 0)) found = site
  return found
}
