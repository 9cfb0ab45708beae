/** @file The commands, each loaded when it is asked for, so that starting one costs nothing for the others. */
import type { CommandRow } from '../command.ts'

const one = (module: { readonly command: CommandRow }): CommandRow => module.command

/** Loaders of the commands by name, in the order of the help. */
export const commandLoaders: Readonly<Record<string, () => Promise<CommandRow>>> = {
  sites: () => import('./sites.ts').then(one),
  run: () => import('./run.ts').then(one),
  gradient: () => import('./gradient.ts').then(one),
  generate: () => import('./generate.ts').then(one),
  export: () => import('./export.ts').then(one),
  validate: () => import('./validate.ts').then(one),
  vector: () => import('./vector.ts').then(one),
  resistance: () => import('./resistance.ts').then(one),
  sweep: () => import('./sweep.ts').then(one),
  capture: () => import('./capture.ts').then(one),
  patch: () => import('./patch.ts').then(one),
  attribute: () => import('./attribute.ts').then(one),
  circuit: () => import('./circuit.ts').then(one),
  lens: () => import('./lens.ts').then(one),
  query: () => import('./query.ts').then(one),
  statistics: () => import('./statistics.ts').then(one),
  similarity: () => import('./similarity.ts').then(one),
  probe: () => import('./probe.ts').then(one),
  sae: () => import('./sae.ts').then(one),
  paper: () => import('./paper.ts').then(one),
  models: () => import('./models.ts').then(one),
  doctor: () => import('./doctor.ts').then(one),
  studio: () => import('./studio.ts').then(one),
  serve: () => import('./serve.ts').then(one),
  bench: () => import('./bench.ts').then(one),
}

/** The command that runs where none is named. */
export const defaultCommand = 'studio'

/** All commands, for help and docs. */
export function allCommands(): Promise<CommandRow[]> {
  return Promise.all(Object.values(commandLoaders).map((load) => load()))
}
