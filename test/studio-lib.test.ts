import { describe, expect, it } from 'vitest'
import * as actlens from '../src/index.ts'
import { encodeSafetensors } from '../src/models/formats/index.ts'
import { tinyReader } from '../src/server/testing.ts'
import { habit, links, patternsOf } from '../studio/src/lib/attention.ts'
import { gridCode, siteCode, storyCode } from '../studio/src/lib/code.ts'
import { colourAt, colours, contrast, inkOn } from '../studio/src/lib/colour.ts'
import { csv } from '../studio/src/lib/export.ts'
import { number, percent, tokenLabel } from '../studio/src/lib/format.ts'
import { quantile, robustLimits, roundUp } from '../studio/src/lib/limits.ts'
import { readValues } from '../studio/src/lib/safetensors.ts'
import { defaultView, fromLink, steeringEdit, toLink, type View } from '../studio/src/lib/view.ts'
import { cellAt, type GridData, layoutOf } from '../studio/src/parts/grid-draw.ts'

describe('the link', () => {
  it('of a newcomer is empty, and an empty one is a newcomer’s', () => {
    expect(toLink(defaultView())).toBe('')
    expect(fromLink('')).toEqual(defaultView())
  })

  it('carries the whole view there and back', () => {
    const view: View = {
      model: 'org/name',
      text: 'A “text” & more, 100 % of it\nwith #hash and 日本',
      edits: [
        { edit: steeringEdit('resid_post.1', ['a, b'], ['c'], -2.5), on: false },
        { edit: { op: 'zero', site: 'mlp_out.*', where: { positions: { from: 1, to: 3 } } }, on: true },
      ],
      maxNewTokens: 12,
      temperature: 0.7,
      seed: 5,
      look: 'steered',
      withEdits: true,
      what: 'cosine',
      site: 'attn_out',
      vector: { activation: { text: 'x', site: 'resid_post.1', position: 3 } },
      at: { site: 'q.2', position: 7 },
      head: 3,
      whitespace: true,
      pin: 12.5,
      room: 'patch',
      rooms: { ...defaultView().rooms, patch: { site: 'z', positions: 'all', at: 'z.1@.2', pin: 0.5 } },
    }
    expect(fromLink(`#${toLink(view)}`)).toEqual(view)
  })

  it('of a long text names it, and shows it again in the same tab', () => {
    const view = defaultView()
    view.rooms.probe.data = 'text,label\n'.repeat(2000)
    const link = toLink(view)
    expect(link.length).toBeLessThan(100)
    expect(fromLink(`#${link}`)).toEqual(view)
    expect(fromLink('#probe.data=kept:1-2').rooms.probe.data).toBe(defaultView().rooms.probe.data)
  })

  it('that is broken is read as far as it goes', () => {
    const view = fromLink('#edits=[{&show=nonsense&new=-4&temperature=hot&at=;drop&limit=-1&vector={&look=plain&off=x')
    expect(view).toEqual({ ...defaultView(), look: 'plain' })
    expect(fromLink('#edits=[1,2]').edits).toEqual(defaultView().edits)
  })
})

describe('limits', () => {
  it('leave a huge first position out, and say so', () => {
    const limits = robustLimits(
      [
        [900, 1, 2, 3],
        [1000, 2, 4, 5],
      ],
      'magnitude',
    )
    expect(limits).toMatchObject({ low: 0, high: 5, first: 1000, clipped: 2 })
    expect(robustLimits([[5, 1, 2, 4.5]], 'magnitude').first).toBeUndefined()
  })

  it('are the 99th percentile where few values are far beyond, symmetric for signed ones, and can be fixed', () => {
    const many = [0, ...Array.from({ length: 999 }, (_, i) => i / 1000), 50]
    expect(robustLimits([many], 'magnitude').high).toBeLessThan(1.1)
    expect(robustLimits([many], 'magnitude').clipped).toBeGreaterThan(0)
    expect(robustLimits([[0, -3, 1]], 'signed')).toMatchObject({ low: -3, high: 3 })
    expect(robustLimits([[0, -3, 1]], 'signed', { pin: 10 })).toMatchObject({ low: -10, high: 10, pinned: true })
    expect(robustLimits([[null, 0.1]], 'magnitude', { least: 2 }).high).toBe(2)
    expect(robustLimits([], 'magnitude').high).toBeGreaterThan(0)
  })

  it('quantile and rounding', () => {
    expect(quantile([1, 2, 3, 4], 0.5)).toBe(2.5)
    expect([roundUp(0.0123), roundUp(17), roundUp(171), roundUp(0)]).toEqual([0.013, 17, 180, 1])
  })
})

describe('colour', () => {
  it.each([
    ['magnitude', false],
    ['magnitude', true],
    ['signed', false],
    ['signed', true],
  ] as const)('text reads on all of the %s scale (dark: %s)', (kind, dark) => {
    for (const c of colours(kind, dark)) expect(contrast(c, inkOn(c))).toBeGreaterThanOrEqual(4.5)
  })

  it('a signed scale is neutral at zero, and ends stay ends', () => {
    const [r, g, b] = colourAt(0, -1, 1, 'signed', false)
    expect(Math.max(r, g, b) - Math.min(r, g, b)).toBeLessThan(8)
    expect(colourAt(99, -1, 1, 'signed', false)).toEqual(colourAt(1, -1, 1, 'signed', false))
  })

  it('lightness of the magnitude scale goes one way only', () => {
    const light = colours('magnitude', false).map((c) => contrast(c, [0, 0, 0]))
    expect(light.every((v, i) => i === 0 || v <= light[i - 1]! + 0.05)).toBe(true)
  })
})

describe('words and numbers', () => {
  it('are short and unmistakable', () => {
    expect([number(1234.5), number(-0.01234), number(0), number(1e9), number(Number.NEGATIVE_INFINITY)]).toEqual([
      '1235',
      '−0.0123',
      '0',
      '1.00e9',
      '−∞',
    ])
    expect([percent(0.973), percent(0.0123), percent(1e-6), percent(0)]).toEqual(['97\u202f%', '1.2\u202f%', '<0.1\u202f%', '0.0\u202f%'])
    expect([tokenLabel(' dog'), tokenLabel(' dog', true), tokenLabel('\n'), tokenLabel('<0x0A>'), tokenLabel(' ')]).toEqual([
      'dog',
      '·dog',
      '⏎',
      '⏎',
      '·',
    ])
    expect(
      csv([
        ['a', 'b,c', 'd"e', ' f'],
        [1, 2, 3, 4],
      ]),
    ).toBe('a,"b,c","d""e"," f"\r\n1,2,3,4\r\n')
  })
})

describe('attention', () => {
  const size = 4
  const previous = new Float32Array(size * size)
  for (let q = 0; q < size; q++) previous[q * size + Math.max(0, q - 1)] = 1
  it('finds where a head looks, and the heaviest links', () => {
    const [a] = patternsOf({ name: 'attn_probs.0', shape: [1, size, size], axes: [], data: previous })
    expect(habit(a!)).toEqual({ where: 'the token before', share: 1 })
    expect(links(a!, 0.5, 10).map((l) => [l.query, l.key])).toEqual([
      [1, 0],
      [2, 1],
      [3, 2],
    ])
  })

  it('reads what the server sends', () => {
    const bytes = encodeSafetensors(
      { 'attn_probs.0': { dtype: 'float32', shape: [1, size, size], data: previous } },
      { axes: 'head,pos,key' },
    )
    expect(readValues(bytes.buffer)).toEqual({ name: 'attn_probs.0', shape: [1, size, size], axes: ['head', 'pos', 'key'], data: previous })
  })
})

it('a grid finds the cell under a point, and makes columns as wide as their words', () => {
  const data: GridData = {
    rows: ['0', '1'],
    columns: ['a', 'extraordinarily', 'b'],
    values: [
      [1, 2, 3],
      [4, 5, 6],
    ],
  }
  const layout = layoutOf(data, (text) => text.length * 7)
  expect(layout.x[2]! - layout.x[1]!).toBeGreaterThan(layout.x[1]! - layout.x[0]!)
  for (const row of [0, 1])
    for (const column of [0, 1, 2]) {
      const x = (layout.x[column]! + layout.x[column + 1]!) / 2
      expect(cellAt(layout, x, layout.top + (row + 0.5) * layout.rowHeight)).toEqual({ row, column })
    }
  expect(cellAt(layout, 2, layout.top + 1)).toBeUndefined()
  expect(layoutOf(data, (text) => text.length * 7, 2000).width).toBeGreaterThan(layout.width)
})

describe('“copy as code” runs as it stands', () => {
  const edits = [
    steeringEdit('resid_post.1', ["it's so happy", 'glad'], ['so sad'], 1.5),
    { op: 'zero', site: 'mlp_out.0', where: { positions: [1] } },
    { op: 'add', site: 'resid_post.2', params: { vector: { activation: { text: 'abc', site: 'resid_post.2', position: 1 } }, scale: 0.5 } },
  ]
  const subject = { model: '', text: "Tom's\nball", edits }
  const vector = { difference: { positive: ['a'], negative: ['b'], site: 'resid_post.1' } }
  const snippets = {
    story: storyCode(subject, { maxNewTokens: 4, temperature: 0.5, seed: 1 }),
    'story without edits': storyCode({ ...subject, edits: [] }, { maxNewTokens: 4, temperature: 0, seed: 1 }),
    norm: gridCode(subject, 'norm', 'resid_post', undefined),
    lens: gridCode({ ...subject, text: 'ids:0,5,6' }, 'lens', 'resid_post', undefined),
    cosine: gridCode({ ...subject, edits: [] }, 'cosine', 'attn_out', vector),
    site: siteCode(subject, 'q.0', undefined),
    'site at a position': siteCode({ ...subject, edits: [] }, 'resid_post.1', 3),
  }
  const AsyncFunction = (async () => {}).constructor as new (...args: string[]) => (...args: unknown[]) => Promise<void>

  it.each(Object.entries(snippets))('%s', async (_, { library, command }) => {
    const [, names = '', body = ''] = /^import \{ (.+) \} from 'actlens'\n([\s\S]*)$/.exec(library) ?? []
    const said: unknown[] = []
    const known = { ...actlens, load: () => tinyReader() } as unknown as Record<string, unknown>
    const run = new AsyncFunction(...names.split(', '), 'process', 'console', body)
    const shown = { stdout: { write: (t: string) => said.push(t) }, log: (...t: unknown[]) => said.push(t) }
    await run(...names.split(', ').map((n) => known[n]), shown, shown)
    expect(said.length).toBeGreaterThan(0)
    expect(command).toMatch(/^(# .*\n)*actlens (generate|run|lens) embedded /)
  })
})
