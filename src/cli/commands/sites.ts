/** @file `actlens sites`: the named sites of a model. */
import type { Model } from '../../run/index.ts'
import type { SiteInfo, SiteRow } from '../../sites/index.ts'
import { defineCommand, modelArgument } from '../command.ts'
import { withModel } from '../model.ts'
import { table } from '../table.ts'

export const command = defineCommand<{ model: string }, object>({
  name: 'sites',
  summary: 'Lists the sites of a model: name, axes, shape, aliases, or the reason why one is missing.',
  example: 'sites embedded',
  arguments: [modelArgument],
  options: [],
  run: (context, args) =>
    withModel(context, args.model, {}, async ({ model }) => {
      const sites = model.sites()
      return {
        json: { model: model.origin.id, family: model.spec.family, sites: sites.map((info) => jsonOf(model, info)) },
        text: textOf(model, sites),
      }
    }),
})

function jsonOf(model: Model, info: SiteInfo) {
  const { site, aliases, absent } = info
  const axes = info.row.axes.map((a) => (a === 'one' ? '1' : a))
  return { site, axes, shape: model.shapeOf(info), aliases, ...(absent ? { absent } : {}) }
}

/** One line for each row of the vocabulary, since a site looks alike in all layers. */
function textOf(model: Model, sites: readonly SiteInfo[]): string {
  const { spec } = model
  const byRow = new Map<SiteRow, SiteInfo>()
  for (const info of sites) if (!byRow.has(info.row)) byRow.set(info.row, info)
  const layers = spec.layers === 1 ? '0' : `{0..${spec.layers - 1}}`
  const lines = [...byRow].map(([row, info]) => {
    const aliases = [...row.transformerLens, ...row.huggingFace(spec.modules)].map((a) => a.replace('{L}', 'L'))
    return [
      row.per === 'layer' ? `${row.name}.${layers}` : row.name,
      `[${row.axes.map((a) => (a === 'one' ? '1' : a)).join(', ')}]`,
      info.absent ? '' : `[${model.shapeOf(info).join(', ')}]`,
      info.absent ? `missing: ${info.absent}` : aliases.join('  '),
    ]
  })
  return `${model.origin.id}: family ${spec.family}, ${spec.layers} layers\n${table(['site', 'axes', 'shape', 'aliases (L: layer)'], lines)}`
}
