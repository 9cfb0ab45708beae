import { PassThrough } from 'node:stream'
import { describe, expect, it } from 'vitest'
import type { Progress } from '../base/progress.ts'
import { Activation } from '../run/index.ts'
import { commandLoaders } from './commands/index.ts'
import { splitPatterns } from './commands/run.ts'
import { cliMarkdown } from './markdown.ts'
import { progressDisplay } from './progress.ts'
import { statisticsOf, topTokens } from './statistics.ts'
import { bytes, short, table } from './table.ts'
import { cli } from './testing.ts'
import { parseText } from './texts.ts'

const names = Object.keys(commandLoaders)

describe('the command line', () => {
  it.each([['--help'], ['-h'], ['help'], ['--quiet', '--help']])('lists every command with %s', async (...argv) => {
    const { code, stdout, stderr } = await cli(argv.flat())
    expect([code, stderr]).toEqual([0, ''])
    for (const name of names) expect(stdout).toMatch(new RegExp(`^  ${name} `, 'm'))
  })

  it.each(names)('has help with an example and the common options for %s', async (name) => {
    const { code, stdout } = await cli([name, '--help'])
    expect(code).toBe(0)
    expect(stdout).toMatch(new RegExp(`^Usage: actlens ${name} `))
    expect(stdout).toMatch(new RegExp(`Example:\\n  actlens ${name}`))
    for (const flag of ['--json', '--quiet', '--threads', '--device', '--precision', '--debug']) expect(stdout).toContain(flag)
    expect((await cli(['help', name])).stdout).toBe(stdout)
  })

  it('gives help as one JSON document, and its version', async () => {
    expect(JSON.parse((await cli(['--help', '--json'])).stdout).commands).toHaveLength(names.length)
    expect(
      JSON.parse((await cli(['run', '--json', '--help'])).stdout).commands[0].options.map((o: { flags: string }) => o.flags),
    ).toContain('--taps <sites>')
    expect((await cli(['--version'])).stdout).toMatch(/^\d+\.\d+\.\d+\n$/)
  })

  it('takes common options before the command, too', async () => {
    const { stdout, code } = await cli(['--threads', '2', '--json', 'models', 'list'])
    expect(code).toBe(0)
    expect(JSON.parse(stdout)).toHaveProperty('models')
  })

  it('suggests a command', async () => {
    const { stderr, code } = await cli(['sitse', 'embedded'])
    expect([code, stderr]).toEqual([2, expect.stringMatching(/did you mean 'sites'/)])
  })

  it('has a docs page with every command, option and example', async () => {
    const page = await cliMarkdown()
    for (const name of names) {
      const row = await (commandLoaders[name] as () => Promise<{ example: string; options: readonly { flags: string }[] }>)()
      expect(page).toContain(`actlens ${row.example}`)
      for (const o of row.options) expect(page).toContain(`| \`${o.flags}\` |`)
    }
  })

  it('says nothing where the reader of stdout is gone', async () => {
    const { pipeClosed } = await import('./io.ts')
    const ran = await cli(['models'], { signal: AbortSignal.abort(pipeClosed) })
    expect([ran.code, ran.stderr]).toEqual([0, ''])
  })
})

describe('arguments', () => {
  it('reads token ids and patterns', () => {
    expect(parseText('ids:5, 6,7')).toEqual([5, 6, 7])
    expect(parseText('ideas: 5')).toBe('ideas: 5')
    expect(() => parseText('ids:5,,6')).toThrow(/ids:5,6,7/)
    expect(splitPatterns('resid_post.{1,3}, logits')).toEqual(['resid_post.{1,3}', 'logits'])
  })
})

describe('tables and numbers', () => {
  it('aligns texts left and numbers right, and leaves no spaces at line ends', () => {
    expect(
      table(
        ['site', 'mean', 'note'],
        [
          ['a', '1.5', ''],
          ['long', '-20', 'x'],
        ],
      ),
    ).toBe('site  mean  note\na      1.5\nlong   -20  x\n')
  })

  it('shortens numbers', () => {
    expect([0, 1.23456, 12345.6, 1e-7, 2.5e9].map(short)).toEqual(['0', '1.235', '12346', '1.00e-7', '2.50e+9'])
    expect([12, 60_816_028, 2.5e9].map(bytes)).toEqual(['12 B', '60.8 MB', '2.5 GB'])
  })

  it('describes a tensor without its padding, and counts what is not finite', () => {
    const data = Float32Array.of(3, 4, 0, 0, -1, Number.NEGATIVE_INFINITY, 99, 99)
    const value = new Activation('q.0', ['batch', 'pos', 'd_model'], { dtype: 'float32', shape: [2, 2, 2], data }, [[0, 1], [0]])
    expect(statisticsOf(value)).toMatchObject({ shape: [2, 2, 2], mean: 1.2, maxAbs: 4, norm: (5 + 0 + 1) / 3, notFinite: 1 })
  })

  it('finds the likeliest tokens, the first of equal ones first', () => {
    const top = topTokens(Float32Array.of(0, 2, 1, 2, -5), 3)
    expect(top.map((t) => t.id)).toEqual([1, 3, 2])
    expect(topTokens(Float32Array.of(0, 0), 5).map((t) => t.probability)).toEqual([0.5, 0.5])
  })
})

describe('progress', () => {
  const stream = (isTTY: boolean) => Object.assign(new PassThrough(), { isTTY, columns: 80 })
  const steps = (task: string, n: number): Progress[] =>
    Array.from({ length: n }, (_, i) => ({ task, done: i + 1, total: n, unit: 'bytes' }))

  it('is quiet about quick work, and otherwise writes a line now and then', () => {
    let now = 0
    const err = stream(false)
    const display = progressDisplay(err, false, () => now)
    for (const p of steps('quick', 10)) display.report(p)
    expect(err.read()).toBeNull()
    for (const p of steps('fetching', 40)) {
      now += 1000
      display.report(p)
    }
    const lines = String(err.read()).trimEnd().split('\n')
    expect(lines.length).toBeGreaterThan(2)
    expect(lines.length).toBeLessThan(7)
    expect(lines[0]).toMatch(/^fetching: 3 B of 40 B, 1 B a second, 37 s left$/)
    expect(lines.at(-1)).toMatch(/^fetching: 40 B of 40 B/)
  })

  it('draws a bar on a terminal and clears it, and nothing at all with --quiet', () => {
    const err = stream(true)
    const display = progressDisplay(err, false)
    display.report({ task: 'fetching model', done: 1, total: 2, unit: 'bytes' })
    display.stop()
    expect(String(err.read())).toMatch(/fetching model/)
    const hushed = stream(true)
    progressDisplay(hushed, true).report({ task: 'fetching model', done: 1, total: 2, unit: 'bytes' })
    expect(hushed.read()).toBeNull()
  })
})
