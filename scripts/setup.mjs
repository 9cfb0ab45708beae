/**
 * @file Sets a clone up: installs the packages, compiles, builds the studio, fetches the embedded model. Each once; what is
 * there and fresh is left alone. `npm start` and `npm test` come through here. With --build it compiles in any case.
 */
import { createHash } from 'node:crypto'
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { withLock } from './tools/lock.mjs'
import { interruptible, npm, run } from './tools/run.mjs'
import { Interrupted, SetUpError, say, step } from './tools/say.mjs'

/** The clone. */
export const root = fileURLToPath(new URL('..', import.meta.url))
/** A file of the clone. */
export const inRoot = (...path) => join(root, ...path)

const lockPath = inRoot('.actlens', 'setup.lock')
const noModelPath = inRoot('.actlens', 'model-not-fetched')
const packagesStamp = inRoot('node_modules', '.actlens-stamp')
const buildStamp = inRoot('dist', '.stamp')
/** Milliseconds for which a failed fetch of the model is not tried again by commands that may not need it. */
const patience = 10 * 60_000

/**
 * Does what is missing of the set-up, and nothing when all is there.
 * @param {{ rebuild?: boolean, model?: 'fetch' | 'try' | 'no' }} options `try`: not again soon after it failed
 * @returns {Promise<{ model: boolean }>} whether the embedded model is there
 */
export function setUp({ rebuild = false, model = 'fetch' } = {}) {
  return interruptible(async (signal) => {
    const todo = () => ({ packages: !packagesAreFresh(), build: rebuild || read(buildStamp) !== sourcesStamp() })
    const first = todo()
    if (first.packages || first.build) {
      const onWait = () => say('another set-up of this folder is at work; waiting for it …')
      await writable(() =>
        withLock(lockPath, { signal, onWait }, async () => {
          // The process that we waited for may have done it all.
          if (todo().packages) await installPackages(signal)
          if (todo().build) await build(signal)
        }),
      )
    }
    return { model: model !== 'no' && (await embeddedModel(signal, model === 'try')) }
  })
}

const read = (path) => (existsSync(path) ? readFileSync(path, 'utf8') : undefined)
const sha256 = (text) => createHash('sha256').update(text).digest('hex')

/** What the packages depend on. */
const lockfileStamp = () => sha256(`${readFileSync(inRoot('package-lock.json'), 'utf8')}${process.platform}-${process.arch}`)

function packagesAreFresh() {
  const stamp = lockfileStamp()
  const seen = read(packagesStamp)
  if (seen !== undefined) return seen === stamp
  if (!installedByHand()) return false
  try {
    writeFileSync(packagesStamp, stamp)
  } catch {
    // A folder of somebody else: it is compared again next time.
  }
  return true
}

/** Whether npm itself has installed just what the lockfile asks for. */
function installedByHand() {
  const hidden = read(inRoot('node_modules', '.package-lock.json'))
  if (hidden === undefined) return false
  const versions = (text) => Object.entries(JSON.parse(text).packages).filter(([path]) => path !== '')
  const installed = new Map(versions(hidden).map(([path, { version }]) => [path, version]))
  return versions(readFileSync(inRoot('package-lock.json'), 'utf8')).every(([path, { version, optional, peer }]) =>
    installed.has(path) ? installed.get(path) === version : optional === true || peer === true,
  )
}

async function installPackages(signal) {
  await step('installing the packages', async () => {
    rmSync(packagesStamp, { force: true })
    const { command, shell } = npm()
    await run([...command, 'ci', '--loglevel=error'], {
      cwd: root,
      signal,
      shell,
      failure: 'The packages could not be installed. Check the connection and run the same command again. npm says:',
    })
    writeFileSync(packagesStamp, lockfileStamp())
  })
}

/** What the build depends on: path, size and time of change of every source, and the packages. */
function sourcesStamp() {
  const lines = [lockfileStamp()]
  const visit = (path) => {
    const s = statSync(inRoot(path), { throwIfNoEntry: false })
    if (s?.isDirectory()) for (const name of readdirSync(inRoot(path)).sort()) visit(`${path}/${name}`)
    else if (s && !path.endsWith('.test.ts')) lines.push(`${path} ${s.size} ${s.mtimeMs}`)
  }
  for (const path of ['src', 'studio', 'tsconfig.json', 'tsconfig.build.json']) visit(path)
  return sha256(lines.join('\n'))
}

/** Builds beside `dist` and puts the whole in its place at the end, so that `dist` is never half there. */
async function build(signal) {
  for (const name of readdirSync(root)) if (name.startsWith('.dist-')) rmSync(inRoot(name), { recursive: true, force: true })
  const fresh = inRoot('.dist-new')
  const tool = (path, ...args) => [process.execPath, inRoot('node_modules', ...path.split('/')), ...args]
  const stamp = sourcesStamp()
  try {
    await step('compiling', () =>
      run(tool('typescript/lib/tsc.js', '-p', 'tsconfig.build.json', '--outDir', fresh), {
        cwd: root,
        signal,
        failure: 'The sources do not compile. The compiler says:',
      }),
    )
    const config = inRoot('studio', 'vite.config.ts')
    if (existsSync(config))
      await step('building the studio', () =>
        run(
          tool('vite/bin/vite.js', 'build', '--config', config, '--outDir', join(fresh, 'studio'), '--emptyOutDir', '--logLevel', 'warn'),
          {
            cwd: root,
            signal,
            failure: 'The studio could not be built. Vite says:',
          },
        ),
      )
    const main = join(fresh, 'cli', 'main.js')
    if (existsSync(main)) chmodSync(main, 0o755)
    writeFileSync(join(fresh, '.stamp'), stamp)
    if (existsSync(inRoot('dist'))) renameSync(inRoot('dist'), inRoot('.dist-old'))
    renameSync(fresh, inRoot('dist'))
  } finally {
    for (const name of ['.dist-new', '.dist-old']) rmSync(inRoot(name), { recursive: true, force: true })
  }
}

/** Whether the embedded model is in the model cache, fetching it first where it is not. */
async function embeddedModel(signal, onlyTry) {
  const { resolveSource } = await import(pathToFileURL(inRoot('dist', 'models', 'hub', 'index.js')).href)
  if (await resolveSource('embedded', { offline: true }).catch(() => undefined)) return true
  const failed = statSync(noModelPath, { throwIfNoEntry: false })?.mtimeMs
  if (onlyTry && failed !== undefined && Date.now() - failed < patience) return false
  try {
    await step('fetching the model stories15M', async (update) => {
      let bytes = 0
      const onProgress = ({ done, total, unit }) => {
        if (unit !== 'bytes') return
        bytes = done
        update(total ? `${megabytes(done)} of ${megabytes(total)}` : '')
      }
      await resolveSource('embedded', { signal, onProgress }).catch((error) => {
        throw signal.aborted ? new Interrupted() : error
      })
      return megabytes(bytes)
    })
    rmSync(noModelPath, { force: true })
    return true
  } catch (error) {
    if (error instanceof Interrupted) throw error
    say(`${error.message} Everything but the embedded model works without it; it is fetched when it is next needed.`)
    mkdirSync(inRoot('.actlens'), { recursive: true })
    writeFileSync(noModelPath, `${error.message}\n`)
    return false
  }
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(0)} MB`

async function writable(work) {
  try {
    await work()
  } catch (error) {
    if (['EACCES', 'EPERM', 'EROFS'].includes(error.code))
      throw new SetUpError(
        `${error.path ?? root} cannot be written, and the set-up is not complete. Change its permissions, or make a clone of your own.`,
      )
    if (error.code === 'ENOSPC') throw new SetUpError('The disk is full. Free about a gigabyte and run the same command again.')
    throw error
  }
}

/** Tells a failure as one sentence; gives the exit code. */
export function told(error) {
  if (error instanceof Interrupted) {
    say('interrupted; the next start goes on from here.')
    return 130
  }
  say(error instanceof SetUpError ? error.message : `the set-up failed unexpectedly: ${error?.stack ?? error}`)
  return 1
}

/** The set-up, or the end of the process with its sentence and exit code. */
export async function setUpOrExit(options) {
  try {
    return await setUp(options)
  } catch (error) {
    process.exit(told(error))
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const only = process.argv.includes('--build')
  await setUpOrExit({ rebuild: only, model: only ? 'no' : 'fetch' })
}
