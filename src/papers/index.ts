/** @file The papers: what stands where, and how to run one. */
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { nearest, UsageError } from '../base/errors.ts'
import { makeFolder, readJson, sizeOrKind, writeFileWhole } from '../base/files.ts'
import type { Paper } from './paper.ts'
import type { PaperResult } from './run.ts'

export * from './paper.ts'
export { commandOf, type PaperOptions, type PaperResult, runPaper } from './run.ts'
export { type Json, type SmallModel, Study, type StudyOptions } from './study.ts'
export { boundOf, type GateResult, gateResults, meanInterval, type Verdict, verdictOf } from './verdict.ts'

const one = (module: { readonly paper: Paper }): Paper => module.paper

/** Loaders of the papers by slug; each is loaded when it is asked for. */
export const paperLoaders: Readonly<Record<string, () => Promise<Paper>>> = {
  'bias-steering': () => import('./bias-steering.ts').then(one),
  east: () => import('./east.ts').then(one),
  esr: () => import('./esr.ts').then(one),
  lineas: () => import('./lineas.ts').then(one),
  memcoach: () => import('./memcoach.ts').then(one),
  'reasoning-control-vectors': () => import('./reasoning-control-vectors.ts').then(one),
}

/** A paper by its slug. */
export async function paperOf(slug: string): Promise<Paper> {
  const load = Object.hasOwn(paperLoaders, slug) ? paperLoaders[slug] : undefined
  if (load) return load()
  const near = nearest(slug, Object.keys(paperLoaders))
  throw new UsageError(`There is no paper '${slug}'${near ? `; did you mean '${near}'?` : `; 'actlens paper list' names them.`}`)
}

/** The result of a full run that ships with the package, if there is one. */
export async function committedResult(slug: string): Promise<PaperResult | undefined> {
  const path = fileURLToPath(new URL(`../../docs/papers/${slug}.json`, import.meta.url))
  return (await sizeOrKind(path)) === undefined ? undefined : ((await readJson(path)) as PaperResult)
}

/** All papers, in the order of the table. */
export function allPapers(): Promise<Paper[]> {
  return Promise.all(Object.values(paperLoaders).map((load) => load()))
}

/** Writes `result.json` and `report.html` into a folder, which is made where it is missing. */
export async function writeResult(folder: string, paper: Paper, result: PaperResult): Promise<void> {
  await makeFolder(folder)
  const { reportOf } = await import('./report.ts')
  await writeFileWhole(join(folder, 'report.html'), reportOf(paper, result))
  await writeFileWhole(join(folder, 'result.json'), `${JSON.stringify(result, null, 1)}\n`)
}
