/** @file The command line as a function of its arguments and streams: parses, runs one command, prints its outcome, gives the exit code. */
import { CommanderError } from 'commander'
import { nearest, UsageError } from '../base/errors.ts'
import { type CommandContext, type CommandRow, type CommonOptions, commonOptions, type Outcome, parserOf } from './command.ts'
import { allCommands, commandLoaders, defaultCommand } from './commands/index.ts'
import { failureOf, helpHint } from './exit.ts'
import { exitCodes, type Io, pipeClosed, writeTo } from './io.ts'
import { commandsHelp, helpJson } from './markdown.ts'
import { progressDisplay } from './progress.ts'
import { ownVersion } from './version.ts'

/** Runs the command line; returns the exit code and never throws. */
export async function main(argv: readonly string[], io: Io): Promise<number> {
  let name: string | undefined
  try {
    const request = readArguments(argv)
    if (request.kind === 'text') return await print(io, request.text)
    if (request.kind === 'help')
      return await print(io, flagIn(argv, '--json') ? helpJson(await allCommands()) : commandsHelp(await allCommands()))
    name = request.command
    const code = await runCommand(await (commandLoaders[name] as () => Promise<CommandRow>)(), request.rest, io)
    // Work that ended early because nobody reads it any more has not been interrupted by its user.
    return code === exitCodes.interrupted && io.signal.reason === pipeClosed ? exitCodes.done : code
  } catch (error) {
    return fail(error, argv, io, name)
  }
}

async function print(io: Io, text: string): Promise<number> {
  await writeTo(io.stdout, text.endsWith('\n') ? text : `${text}\n`)
  return exitCodes.done
}

async function fail(error: unknown, argv: readonly string[], io: Io, command: string | undefined): Promise<number> {
  if (io.signal.reason === pipeClosed) return exitCodes.done
  const failure = failureOf(error, command)
  await writeTo(io.stderr, `${failure.message}\n`)
  if (flagIn(argv, '--debug') && error instanceof Error) await writeTo(io.stderr, `${error.stack ?? ''}\n${causesOf(error)}`)
  // Whoever asked for JSON parses stdout, also after a failure.
  if (flagIn(argv, '--json')) await print(io, JSON.stringify({ error: failure.message, kind: failure.kind, code: failure.code }))
  return failure.code
}

function causesOf(error: Error): string {
  const cause = error.cause
  return cause instanceof Error ? `Caused by ${cause.stack ?? cause.message}\n${causesOf(cause)}` : ''
}

/** Whether a flag was given, where the parser has not come to say so. */
function flagIn(argv: readonly string[], flag: string): boolean {
  const end = argv.indexOf('--')
  return argv.slice(0, end < 0 ? undefined : end).includes(flag)
}

type Request =
  | { readonly kind: 'help' }
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'command'; readonly command: string; readonly rest: readonly string[] }

/** Which command is meant. Common options may stand before its name; without a name it is the studio. */
function readArguments(argv: readonly string[]): Request {
  const takesValue = commonOptions.filter((o) => o.flags.includes('<')).map((o) => o.flags.split(' ')[0] as string)
  let at = 0
  while (argv[at]?.startsWith('-')) at += takesValue.includes(argv[at] as string) ? 2 : 1
  const before = argv.slice(0, at)
  const name = argv[at]
  if (before.includes('--version') || before.includes('-V')) return { kind: 'text', text: ownVersion() }
  if (name === 'help') return argv[at + 1] === undefined ? { kind: 'help' } : readArguments([argv[at + 1] as string, '--help'])
  if (name === undefined) {
    const help = before.includes('--help') || before.includes('-h')
    return help ? { kind: 'help' } : { kind: 'command', command: defaultCommand, rest: argv }
  }
  if (!Object.hasOwn(commandLoaders, name)) throw unknownCommand(name)
  return { kind: 'command', command: name, rest: [...before, ...argv.slice(at + 1)] }
}

function unknownCommand(name: string): UsageError {
  const names = Object.keys(commandLoaders)
  const near = nearest(name, names)
  return new UsageError(
    `There is no command '${name}'${near ? `; did you mean '${near}'?` : '.'} Commands are ${names.join(', ')}. ${helpHint()}`,
  )
}

async function runCommand(row: CommandRow, rest: readonly string[], io: Io): Promise<number> {
  const parsed = parse(row, rest)
  if ('help' in parsed) return print(io, parsed.help)
  const { args, options } = parsed
  const common = options as CommonOptions
  const progress = progressDisplay(io.stderr, common.quiet === true)
  const line = (text: string) => {
    if (io.signal.reason === pipeClosed) return
    progress.stop()
    io.stderr.write(`${text}\n`)
  }
  const context: CommandContext = {
    io,
    common,
    onProgress: progress.report,
    note: common.quiet ? () => {} : line,
    warn: line,
    async write(text) {
      if (common.json) return
      progress.stop()
      await writeTo(io.stdout, text)
    },
  }
  let outcome: Outcome
  try {
    outcome = await row.run(context, args, options)
  } finally {
    progress.stop()
  }
  if ('printed' in outcome) return outcome.code ?? exitCodes.done
  const text = common.json ? `${JSON.stringify(outcome.json)}\n` : (outcome.text ?? '')
  await writeTo(io.stdout, text)
  return outcome.code ?? exitCodes.done
}

type Parsed = { readonly help: string } | { readonly args: Record<string, unknown>; readonly options: Record<string, unknown> }

function parse(row: CommandRow, rest: readonly string[]): Parsed {
  let help = ''
  let result: Parsed | undefined
  const parser = parserOf(row, (args, options) => {
    result = { args, options }
  })
  parser.configureOutput({ writeOut: (text) => (help += text) })
  try {
    parser.parse(rest, { from: 'user' })
  } catch (error) {
    if (!(error instanceof CommanderError) || error.exitCode !== 0) throw error
    return { help: flagIn(rest, '--json') ? helpJson([row]) : help }
  }
  if (!result) throw new UsageError(`The arguments of '${row.name}' say nothing to do. ${helpHint(row.name)}`)
  return result
}
