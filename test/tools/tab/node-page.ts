/** @file The work whose figures are compared, in a process of its own: `node node-page.js DEVICE FOLDER…` writes them as JSON. */
import { load } from '../../../src/run/open.ts'
import type { Device } from '../../../src/tensor/index.ts'
import { type Figures, modelFigures, transformerLosses } from './figures.ts'

const [device, ...folders] = process.argv.slice(2)
const models: Record<string, Figures> = {}
for (const folder of folders) models[folder] = await modelFigures(await load(folder, { device: device as Device, selfCheck: false }))
const losses = await transformerLosses({ device: device as Device })
process.stdout.write(JSON.stringify({ models, losses }), () => process.exit(0))
