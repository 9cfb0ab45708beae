/** @file `actlens serve`: the server without a page being opened. */
import { defineCommand, modelArgument } from '../command.ts'
import { runServer, type ServerOptions, serverOptions } from '../server.ts'

export const command = defineCommand<{ model?: string }, ServerOptions>({
  name: 'serve',
  summary: 'Starts the server that the studio talks to, and keeps it running until Ctrl-C.',
  example: 'serve embedded --port 4711',
  arguments: [{ ...modelArgument, optional: true }],
  options: serverOptions,
  run: (context, args, options) =>
    runServer(context, { ...options, open: false, ...(args.model === undefined ? {} : { model: args.model }) }),
})
