/** @file `actlens sites`: the named sites of a model. */
import type { Model } from '../../run/index.ts'
import type { SiteInfo } from '../../sites/index.ts'
import { defineCommand, modelArgument, type Outcome } from '../command.ts'
import { withModel } from '../model.ts'
import { onnxSites } from '../onnx.ts'
import { table } from '../table.ts'

export const command = defineCommand<{ model: string }, object>({
  name: 'sites',
  summary: 'Lists the sites of a model: name, axes, shape, aliases, or the reason why one is missing.',
  example: 'sites embedded',
  arguments: [modelArgument],
  options: [],
  run: (context, args) =>
    withModel<Outcome>(
      context,
      args.model,
      {},
      async ({ model }) => {
        const sites = model.sites()
        return {
          json: { model: model.origin.id, family: model.architecture.family, sites: sites.map((info) => jsonOf(model, info)) },
          text: textOf(model, sites),
        }
      },
      async ({ model }) => onnxSites(model),
    ),
})

function jsonOf(model: Model, info: SiteInfo) {
  const { site, aliases, absent } = info
  const axes = info.row.axes.map((a) => (a === 'one' ? '1' : a))
  return { site, axes, shape: model.shapeOf(info), aliases, ...(absent ? { absent } : {}) }
}

/** One line for each site, or for all layers of it, since a site looks alike in all layers. */
function textOf(model: Model, sites: readonly SiteInfo[]): string {
  const { family, stacks } = model.architecture
  const nameOf = ({ site, stack: { layers } }: SiteInfo) => site.replace(/\.\d+$/, layers === 1 ? '.0' : `.{0..${layers - 1}}`)
  const first = new Map<string, SiteInfo>()
  for (const info of sites) if (!first.has(nameOf(info))) first.set(nameOf(info), info)
  const lines = [...first].map(([name, info]) => [
    name,
    `[${info.row.axes.map((a) => (a === 'one' ? '1' : a)).join(', ')}]`,
    info.absent ? '' : `[${model.shapeOf(info).join(', ')}]`,
    info.absent ? `missing: ${info.absent}` : info.aliases.map((a) => a.replace(`.${info.layer}.`, '.L.')).join('  '),
  ])
  const sizes = stacks.map((s) => `${s.prefix ? `${s.prefix.slice(0, -1)} ` : ''}${s.layers} layers`).join(', ')
  return `${model.origin.id}: family ${family}, ${sizes}\n${table(['site', 'axes', 'shape', 'aliases (L: layer)'], lines)}`
}
