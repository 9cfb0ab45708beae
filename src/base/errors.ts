/** @file Typed errors. Every message is a sentence that says what is wrong and what to do next. */

/** Base of all errors that actlens raises on purpose: the command line prints only their message. */
export class ActlensError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = new.target.name
  }
}

/** Wrong usage: an unknown option, site, op or key, or arguments that contradict each other (exit code 2). */
export class UsageError extends ActlensError {}

/** A file, folder or download that is missing, truncated, malformed or not what its hash promises. */
export class FormatError extends ActlensError {}

/** A model that cannot be loaded, or cannot do what was asked; the message names the missing fact. */
export class ModelError extends ActlensError {}

/** A site that does not exist in this model; the message carries the reason from the vocabulary table. */
export class SiteError extends ActlensError {}

/** An edit or tap that is malformed, or that can never fire. */
export class EditError extends ActlensError {}

/** Shapes or types that do not fit; the message names the op or site and the shapes. */
export class ShapeError extends ActlensError {}

/** The runtime could not compile or run a program. */
export class RuntimeFailure extends ActlensError {}

/** The work was cancelled through an `AbortSignal`; what was finished before is kept. */
export class CancelledError extends ActlensError {
  constructor(message = 'The work was cancelled.') {
    super(message)
  }
}

/** Throws {@link CancelledError} when `signal` has been aborted. */
export function throwIfCancelled(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new CancelledError()
}

/** The message of anything that was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

/** A list for a sentence, shortened after `limit` items: `a, b, c and 4 more`. */
export function listed(items: Iterable<string>, limit = 8): string {
  const all = [...items]
  return all.length <= limit ? all.join(', ') : `${all.slice(0, limit).join(', ')} and ${all.length - limit} more`
}

/** The candidate closest to `word` by edit distance, for "did you mean"; undefined when none is near. */
export function nearest(word: string, candidates: Iterable<string>): string | undefined {
  let best: string | undefined
  let bestDistance = Math.max(2, Math.floor(word.length / 3)) + 1
  for (const candidate of candidates) {
    const distance = editDistance(word, candidate)
    if (distance < bestDistance) {
      bestDistance = distance
      best = candidate
    }
  }
  return best
}

function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const current = [i]
    for (let j = 1; j <= b.length; j++) {
      const substitution = (previous[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1)
      current.push(Math.min(substitution, (previous[j] as number) + 1, (current[j - 1] as number) + 1))
    }
    previous = current
  }
  return previous[b.length] as number
}
