/** @file `actlens studio`: the page on which a model is looked into and steered. */
import { defineCommand, modelArgument } from '../command.ts'
import { runServer, type ServerOptions, serverOptions } from '../server.ts'

export const command = defineCommand<{ model?: string }, ServerOptions>({
  name: 'studio',
  summary: 'Opens the studio in a browser: read, look into and steer a model (the default command).',
  example: 'studio embedded',
  arguments: [{ ...modelArgument, optional: true }],
  options: [...serverOptions, { flags: '--no-open', doc: 'do not open a browser' }],
  run: (context, args, options) =>
    runServer(context, { open: true, ...options, ...(args.model === undefined ? {} : { model: args.model }) }),
})
