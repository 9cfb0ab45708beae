/** @file `actlens bench`: the jobs of `bench/`, which a clone has and a package does not. */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, readdir, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { FormatError, ModelError } from '../../base/errors.ts'
import { readJson } from '../../base/files.ts'
import { type CommandContext, defineCommand, integer, number, type OptionRow } from '../command.ts'
import { exitCodes } from '../io.ts'
import { checkCommon } from '../model.ts'
import { packageRoot } from '../version.ts'

interface Options {
  readonly model?: readonly string[]
  readonly batch?: number
  readonly rounds?: number
  readonly budget?: number
  readonly out?: string
}

const options: readonly OptionRow[] = [
  { flags: '--model <name>', doc: 'stories15M or smollm2-135m-shape (default: both)', repeat: true },
  { flags: '--batch <n>', doc: 'rows of a batch (default: 1)', parse: integer(1) },
  { flags: '--rounds <n>', doc: 'rounds in which the contenders take turns (default: 20)', parse: integer(1) },
  { flags: '--budget <seconds>', doc: 'most seconds for a job (default: 40)', parse: number },
  { flags: '--out <folder>', doc: 'folder for the raw JSON and the table (default: bench/results)' },
]

export const command = defineCommand<{ job: readonly string[] }, Options>({
  name: 'bench',
  summary: 'Runs benchmark jobs (all without a name) and prints their tables; needs a clone of the repository.',
  example: 'bench J1 J2 --threads 2',
  arguments: [{ name: 'JOB', doc: 'names of jobs, such as J1', optional: true, repeat: true }],
  options,
  async run(context, { job }, options) {
    const { common } = context
    const runner = join(packageRoot, 'bench', 'run.mjs')
    if (!existsSync(runner))
      throw new ModelError(
        `The benchmarks are not part of this installation (no ${runner}): clone the repository and run 'npm run bench' there.`,
      )
    await checkCommon(common)
    if ((common.device ?? 'cpu') !== 'cpu')
      throw new ModelError(`The benchmarks run on the CPU, not on '${common.device}': leave --device out.`)
    if ((common.precision ?? 'f32') !== 'f32')
      throw new ModelError(`Each job of the benchmarks names its precisions: leave '--precision ${common.precision}' out.`)
    // The runner's raw JSON is the document of --json; where no folder is named for it, it goes to one that is thrown away.
    const temporary = common.json && options.out === undefined ? await mkdtemp(join(tmpdir(), 'actlens-bench-')) : undefined
    try {
      const out = options.out ?? temporary
      const { model = [], batch, rounds, budget } = options
      const values = Object.entries({ batch, rounds, budget, threads: common.threads, out }).filter(([, v]) => v !== undefined)
      const flags = [...model.map((m) => ['model', m] as const), ...values].flatMap(([name, value]) => [`--${name}`, String(value)])
      const code = await runnerExit(context, [runner, ...job, ...flags])
      if (!common.json || code !== exitCodes.done) return { printed: true, code }
      return { json: await newestJson(out as string) }
    } finally {
      if (temporary !== undefined) await rm(temporary, { recursive: true, force: true })
    }
  },
})

/** Runs the runner; its exit codes are those of the contract. With `--json` its tables go to stderr. */
async function runnerExit({ io, common }: CommandContext, argv: readonly string[]): Promise<number> {
  const child = spawn(process.execPath, argv, { stdio: ['ignore', 'pipe', 'pipe'] })
  const tables = common.json ? io.stderr : io.stdout
  if (common.json && common.quiet) child.stdout.resume()
  else child.stdout.pipe(tables, { end: false })
  child.stderr.pipe(io.stderr, { end: false })
  const stop = () => child.kill('SIGINT')
  io.signal.addEventListener('abort', stop, { once: true })
  try {
    return await new Promise((done, fail) => child.once('error', fail).once('close', (status) => done(status ?? exitCodes.interrupted)))
  } finally {
    io.signal.removeEventListener('abort', stop)
  }
}

async function newestJson(folder: string): Promise<unknown> {
  const names = (await readdir(folder)).filter((n) => n.endsWith('.json'))
  const dated = await Promise.all(names.map(async (name) => ({ name, at: (await stat(join(folder, name))).mtimeMs })))
  const newest = dated.sort((a, b) => b.at - a.at)[0]
  if (!newest) throw new FormatError(`The benchmarks wrote no JSON into ${folder}; run them without --json to see what they say.`)
  return readJson(join(folder, newest.name))
}
