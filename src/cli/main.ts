#!/usr/bin/env node
/** @file The program `actlens`: streams and signals of the process around the command line. */
import { main } from './cli.ts'
import { exitCodes, pipeClosed } from './io.ts'

const controller = new AbortController()

// The first Ctrl-C asks the work to stop and keep what is finished; the second one does not ask.
for (const signal of ['SIGINT', 'SIGTERM'] as const)
  process.on(signal, () => {
    if (controller.signal.aborted) process.exit(exitCodes.interrupted)
    controller.abort()
  })

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') return controller.abort(pipeClosed)
  process.stderr.write(`The results could not be written to standard output: ${error.message}.\n`)
  process.exit(exitCodes.failed)
})
// Nobody reads stderr: there is no place to say so.
process.stderr.on('error', () => {})

const { stdin, stdout, stderr } = process
const code = await main(process.argv.slice(2), { stdin, stdout, stderr, signal: controller.signal })
// Open connections and sessions would keep the process alive; pipes are written out first.
await Promise.all(
  [stdout, stderr].map((stream) => new Promise<void>((done) => (stream.destroyed ? done() : stream.write('', () => done())))),
)
process.exit(code)
