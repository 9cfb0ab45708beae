/** @file Takes one file out of a `.tgz` while it is being downloaded, and judges both by their hashes. */

import { createHash, type Hash } from 'node:crypto'
import { type FileHandle, open, rm } from 'node:fs/promises'
import { basename } from 'node:path'
import { createGunzip, type Gunzip } from 'node:zlib'
import { FormatError, listed, messageOf, nearest } from '../../base/errors.ts'
import { writeAll, writeFailure } from '../../base/files.ts'
import { type Verifier, WrongContent } from './download.ts'
import { TarFinder } from './tar.ts'

/** What {@link TgzExtractor} looks for. */
export interface ExtractOptions {
  /** Path of the file inside the package. */
  readonly path: string
  /** Where it is written. */
  readonly output: string
  /** The archive, for sentences: `name@version`. */
  readonly what: string
  /** SHA-256 of the file, when known; the archive is then not read further than the file. */
  readonly sha256?: string | undefined
  /** Integrity of the archive, as npm tells it (`sha512-BASE64`, or several). */
  readonly integrity?: string | undefined
}

/** A sink for the bytes of a `.tgz` that writes one file of it. */
export class TgzExtractor implements Verifier {
  /** Size and SHA-256 of the file, once all of it was seen. */
  result: { readonly size: number; readonly sha256: string } | undefined
  /** Bytes of the file written so far and in all, once it was found in the archive. */
  written: { readonly done: number; readonly total: number } | undefined
  #archive: Hash | undefined
  #gunzip: Gunzip | undefined
  #finder: TarFinder | undefined
  #reading: Promise<void> = Promise.resolve()
  #failure: unknown
  #handle: FileHandle | undefined
  readonly #options: ExtractOptions
  readonly #integrity: { readonly algorithm: string; readonly digest: string } | undefined

  constructor(options: ExtractOptions) {
    this.#options = options
    this.#integrity = strongest(options.integrity)
  }

  /** Whether the archive is read no further than the file. */
  get stopsEarly(): boolean {
    return this.#options.sha256 !== undefined
  }

  async reset(): Promise<void> {
    await this.close()
    this.result = undefined
    this.written = undefined
    this.#failure = undefined
    const handle = await open(this.#options.output, 'w').catch((error) => Promise.reject(writeFailure(error, this.#options.output)))
    this.#handle = handle
    this.#archive = this.#integrity && createHash(this.#integrity.algorithm)
    const content = createHash('sha256')
    const finder = new TarFinder(this.#options.path, {
      onStart: (total) => {
        this.written = { done: 0, total }
      },
      onData: async (bytes) => {
        content.update(bytes)
        await writeAll(handle, bytes).catch((error) => Promise.reject(writeFailure(error, this.#options.output)))
        const { done, total } = this.written as { done: number; total: number }
        this.written = { done: done + bytes.length, total }
      },
      onEnd: () => {
        this.result = { size: this.written?.total ?? 0, sha256: content.digest('hex') }
      },
    })
    this.#finder = finder
    const gunzip = createGunzip({ chunkSize: 1 << 18 })
    this.#gunzip = gunzip
    this.#reading = (async () => {
      for await (const bytes of gunzip as AsyncIterable<Uint8Array>) await finder.push(bytes)
    })().catch((error) => {
      this.#failure = error
    })
  }

  async push(bytes: Uint8Array): Promise<undefined | 'enough'> {
    this.#archive?.update(bytes)
    if (this.#gunzip && !this.#gunzip.write(bytes)) {
      // Whoever comes first: room for more, or the reader's failure (after which there never will be room).
      const gunzip = this.#gunzip
      await Promise.race([new Promise((done) => gunzip.once('drain', done)), this.#reading])
    }
    if (this.#failure !== undefined) throw this.#damage()
    if (this.result === undefined || this.#options.sha256 === undefined) return undefined
    this.#checkContent()
    return 'enough'
  }

  async verify(): Promise<void> {
    if (this.result === undefined || this.#options.sha256 === undefined) {
      this.#gunzip?.end()
      await this.#reading
      if (this.#archive && this.#integrity) {
        const actual = this.#archive.digest('base64')
        if (actual !== this.#integrity.digest) {
          const { algorithm, digest } = this.#integrity
          throw await this.#discard(
            `The tarball of ${this.#options.what} has ${algorithm} ${actual} where npm promises ${digest}: it was deleted. Try again, or another registry.`,
          )
        }
      }
      if (this.#failure !== undefined) throw this.#damage()
      if (this.result === undefined) throw this.#absent()
    }
    this.#checkContent()
    await this.#handle?.sync()
    await this.close()
  }

  /** Ends reading and closes the output file; what was written stays. */
  async close(): Promise<void> {
    this.#gunzip?.destroy()
    await this.#reading
    await this.#handle?.close()
    this.#gunzip = undefined
    this.#handle = undefined
  }

  #checkContent(): void {
    const expected = this.#options.sha256
    if (expected === undefined || this.result?.sha256 === expected) return
    throw new WrongContent(
      `${this.#options.path} of ${this.#options.what} has SHA-256 ${this.result?.sha256} where ${expected} was expected: it was deleted. Try again, or another registry.`,
    )
  }

  async #discard(message: string): Promise<WrongContent> {
    await this.close()
    await rm(this.#options.output, { force: true })
    return new WrongContent(message)
  }

  #damage(): unknown {
    const error = this.#failure
    // A full disk is told as it is; anything else that stops reading means that the bytes are not a sound archive.
    if (error instanceof FormatError && error.cause !== undefined) return error
    return new WrongContent(`The tarball of ${this.#options.what} is damaged (${messageOf(error)}): it was deleted. Try again.`)
  }

  #absent(): FormatError {
    const passed = this.#finder?.passed ?? []
    const close = nearest(this.#options.path, passed) ?? passed.find((path) => basename(path) === basename(this.#options.path))
    const hint = close ? `Did you mean '${close}'?` : `It holds ${listed(passed)}.`
    return new FormatError(`${this.#options.what} has no file '${this.#options.path}'. ${hint}`)
  }
}

/** The strongest hash of an integrity string that Node knows. */
function strongest(integrity: string | undefined): { algorithm: string; digest: string } | undefined {
  const all = (integrity ?? '').split(/\s+/).map((one) => /^(sha512|sha384|sha256|sha1)-([A-Za-z0-9+/=]+)/.exec(one))
  for (const algorithm of ['sha512', 'sha384', 'sha256', 'sha1']) {
    const found = all.find((match) => match?.[1] === algorithm)
    if (found?.[2]) return { algorithm, digest: found[2] }
  }
  return undefined
}
