/** @file Running the server for a command, until it is interrupted. */
import { type CommandContext, integer, type OptionRow, type Outcome } from './command.ts'
import { exitCodes, writeTo } from './io.ts'
import { checkCommon, modelSource } from './model.ts'

/** Options of the commands that start the server. */
export interface ServerOptions {
  readonly port?: number
  readonly host?: string
  readonly open?: boolean
}

/** Rows of {@link ServerOptions}. */
export const serverOptions: readonly OptionRow[] = [
  { flags: '--port <n>', doc: 'port to listen on (default: 4600, or the next one that is free)', parse: integer(0, 65_535) },
  { flags: '--host <name>', doc: 'address to listen on (default: this machine only)' },
]

/** Starts the server, says where it is, and waits for Ctrl-C; the JSON document is printed at once, since the server does not end by itself. */
export async function runServer(context: CommandContext, options: ServerOptions & { readonly model?: string }): Promise<Outcome> {
  const { io, common } = context
  if (options.model !== undefined) modelSource(options.model)
  await checkCommon(common)
  const { startServer } = await import('../server/index.ts')
  const { model, port, host, open } = options
  const { threads, device, precision } = common
  const given = Object.entries({ model, port, host, open, threads, device, precision }).filter(([, value]) => value !== undefined)
  const server = await startServer({ ...Object.fromEntries(given), signal: io.signal })
  try {
    if (common.json) await writeTo(io.stdout, `${JSON.stringify({ url: server.url })}\n`)
    else await context.write(`The studio is at ${server.url} (Ctrl-C stops it).\n`)
    await new Promise<void>((done) => (io.signal.aborted ? done() : io.signal.addEventListener('abort', () => done(), { once: true })))
  } finally {
    await server.close()
  }
  return { printed: true, code: exitCodes.interrupted }
}
