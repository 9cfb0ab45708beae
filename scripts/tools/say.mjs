/** @file What the set-up says: one line on stderr for each step, with how long it took. Stdout belongs to the command. */

/** A failure that is told as its sentence, without a stack. */
export class SetUpError extends Error {}

/** The set-up was interrupted by a signal. */
export class Interrupted extends Error {}

/** A line on stderr. */
export function say(text) {
  process.stderr.write(`actlens: ${text}\n`)
}

/**
 * Does a step and says so, on one line.
 * @param {string} title what is being done, as in `compiling`
 * @param {(update: (text: string) => void) => Promise<string | void>} work may show how far it is; what it returns is said at the end
 */
export async function step(title, work) {
  const start = `actlens: ${title} …`
  const begun = performance.now()
  const seconds = () => `${((performance.now() - begun) / 1000).toFixed(1)} s`
  process.stderr.write(start)
  // Only a terminal can take back what was written.
  const update = (text) => process.stderr.isTTY && process.stderr.write(`\r\x1b[K${start} ${text}`)
  try {
    const result = await work(update)
    update('')
    process.stderr.write(process.stderr.isTTY ? '\b' : '')
    process.stderr.write(` ${result ? `${result}, ` : ''}${seconds()}\n`)
  } catch (error) {
    process.stderr.write(error instanceof Interrupted ? ' interrupted\n' : ' failed\n')
    throw error
  }
}
