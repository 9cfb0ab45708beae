/** @file `actlens doctor`: what this machine offers, and what is known of a model. */
import { availableParallelism, cpus, freemem, totalmem } from 'node:os'
import { CancelledError, messageOf } from '../../base/errors.ts'
import type { StackView } from '../../models/architecture.ts'
import { bytesOfModel, embedded, listModels, locate, modelCacheFolder, npmId } from '../../models/hub/index.ts'
import type { Model } from '../../run/index.ts'
import { type CommandContext, defineCommand, modelArgument } from '../command.ts'
import { devices, whyAbsent } from '../devices.ts'
import { failureOf } from '../exit.ts'
import { exitCodes } from '../io.ts'
import { withModel } from '../model.ts'
import { bytes, table } from '../table.ts'
import { versions } from '../version.ts'

/** Oldest Node that is supported. */
const oldestNode = 20

export const command = defineCommand<{ model?: string }, object>({
  name: 'doctor',
  summary: 'Tells what this machine offers and, with MODEL, what is known of a model and what it lacks.',
  example: 'doctor embedded',
  arguments: [{ ...modelArgument, optional: true }],
  options: [],
  async run(context, args) {
    const machine = await examineMachine()
    const model = args.model === undefined ? undefined : await examineModel(context, args.model)
    const failed = machine.problems.length > 0 || (model !== undefined && 'error' in model)
    return {
      json: { ...machine, ...(model ? { model } : {}) },
      text: machineText(machine) + (model ? modelText(model) : ''),
      ...(failed ? { code: exitCodes.failed } : {}),
    }
  },
})

interface Machine {
  readonly actlens: string
  readonly node: string
  readonly runtime: string
  readonly platform: string
  readonly processor: string
  readonly threads: number
  /** Bytes. */
  readonly memory: { readonly total: number; readonly free: number }
  readonly cache: { readonly folder: string; readonly models: number; readonly bytes: number }
  /** Whether the embedded model is cached, so that it works offline. */
  readonly embedded: boolean
  readonly devices: readonly { readonly device: string; readonly available: boolean; readonly reason?: string }[]
  readonly problems: readonly string[]
}

async function examineMachine(): Promise<Machine> {
  const problems: string[] = []
  // A runtime that cannot be loaded, or a damaged cache, is what this command is asked for: told, not thrown.
  const attempt = async <T>(work: () => Promise<T>, otherwise: T): Promise<T> => {
    try {
      return await work()
    } catch (error) {
      problems.push(messageOf(error))
      return otherwise
    }
  }
  const { actlens, runtime } = await attempt(versions, { actlens: 'unknown', runtime: 'unknown', node: process.version })
  const cached = await attempt(() => listModels(), [])
  if (Number(process.versions.node.split('.')[0]) < oldestNode)
    problems.push(`Node ${process.version} is too old: install version ${oldestNode} or later.`)
  const found = []
  for (const device of devices) {
    const reason = await attempt(() => whyAbsent(device), 'it could not be tried')
    found.push({ device, available: reason === undefined, ...(reason === undefined ? {} : { reason }) })
  }
  return {
    actlens,
    node: process.version,
    runtime,
    platform: `${process.platform} ${process.arch}`,
    processor: cpus()[0]?.model.trim() ?? 'unknown',
    threads: availableParallelism(),
    memory: { total: totalmem(), free: freemem() },
    cache: { folder: modelCacheFolder(), models: cached.length, bytes: cached.reduce((sum, m) => sum + bytesOfModel(m), 0) },
    embedded: (await attempt(() => locate(npmId(embedded)), undefined)) !== undefined,
    devices: found,
    problems,
  }
}

type ModelReport = Awaited<ReturnType<typeof describeModel>> | { readonly error: string }

async function examineModel(context: CommandContext, name: string): Promise<ModelReport> {
  try {
    return await withModel(context, name, {}, async ({ model }) => describeModel(model))
  } catch (error) {
    if (error instanceof CancelledError || failureOf(error).code === exitCodes.usage) throw error
    return { error: failureOf(error).message }
  }
}

/** Sizes of a stack, under names with its prefix. */
function sizesOf({ prefix = '', layers, dModel, heads, kvHeads, headDim, dMlp, vocab }: StackView): Record<string, number> {
  const sizes = Object.entries({ layers, dModel, heads, kvHeads, headDim, dMlp, vocab }).filter(([, n]) => n !== undefined)
  return Object.fromEntries(sizes.map(([name, n]) => [prefix + name, n as number]))
}

async function describeModel(model: Model) {
  const { family, stacks } = model.architecture
  const absent = new Map(model.sites().flatMap((s) => (s.absent ? [[s.row.name, s.absent] as const] : [])))
  return {
    id: model.origin.id,
    hash: await model.origin.hash(),
    family,
    sizes: { ...Object.fromEntries(stacks.flatMap((s) => Object.entries(sizesOf(s)))), contextLength: model.contextLength },
    precision: model.precision,
    tokenizer: model.hasTokenizer,
    chatTemplate: model.hasTokenizer && model.tokenizer.chat !== undefined,
    checks: model.origin.checks,
    absentSites: [...absent].map(([site, reason]) => ({ site, reason })),
  }
}

function machineText(m: Machine): string {
  return table(
    ['what', 'found'],
    [
      ['actlens', m.actlens],
      ['Node', m.node],
      ['runtime', m.runtime],
      ['machine', `${m.platform}, ${m.processor}, ${m.threads} threads`],
      ['memory', `${bytes(m.memory.free)} free of ${bytes(m.memory.total)}`],
      ['model cache', `${m.cache.folder}: ${m.cache.models} models, ${bytes(m.cache.bytes)}`],
      ['embedded model', m.embedded ? 'cached, works offline' : "not cached yet; 'actlens models fetch embedded' fetches it"],
      ...m.devices.map((d) => [`device ${d.device}`, d.available ? 'available' : `not available: ${d.reason}`]),
      ...m.problems.map((p) => ['problem', p]),
    ],
  )
}

function modelText(m: ModelReport): string {
  if ('error' in m) return `\nThe model cannot be loaded: ${m.error}\n`
  const sizes = Object.entries(m.sizes).map(([name, size]) => `${name} ${size}`)
  const lines = [
    ['model', m.id],
    ['hash', m.hash],
    ['family', m.family],
    ['sizes', sizes.join(', ')],
    ['precision', m.precision],
    ['tokenizer', m.tokenizer ? 'there' : 'missing: give token ids (ids:5,6,7)'],
    ['chat template', m.chatTemplate ? 'there' : 'missing: generate --chat is refused'],
    ...m.checks.map((c) => ['checked', c]),
    ...m.absentSites.map((s) => ['missing site', `${s.site}: ${s.reason}`]),
  ]
  return `\n${table(['what', 'known'], lines)}`
}
