import { expect, test } from 'vitest'
import { drawFigure, tableFigure } from './index.ts'

test.each(['line', 'bar', 'dot', 'heat'] as const)('a %s figure is drawn with its labels', (kind) => {
  const svg = drawFigure({
    name: kind,
    title: kind,
    caption: '',
    kind,
    x: { key: 'x', label: 'strength (of the norm)' },
    y: { key: 'y', label: 'effect' },
    series: { key: 'v', label: 'method' },
    data: [1, 2, 3].map((x) => ({
      x,
      y: kind === 'bar' ? `name ${x}` : x * x,
      v: kind === 'heat' ? x - 2 : `m${x % 2}`,
      low: x - 1,
      high: x + 1,
    })),
  })
  expect(svg).toContain('strength (of the norm)')
  expect(svg).toMatch(/<(path|rect|circle)/)
  // One element, so that it can be a file of its own.
  expect(svg).toMatch(/^<svg xmlns=[\s\S]*<\/svg>$/)
  expect(svg).toContain(kind === 'heat' ? 'Colour: method' : 'm1')
})

test('tables with named axes draw themselves: two axes as a heat map, one as a line', () => {
  const axes = [
    { name: 'layer', labels: ['0', '1'] },
    { name: 'pos', labels: ['The', 'cat', 'cat'] },
  ]
  const heat = tableFigure({ axes, data: Float32Array.of(0, 1, 2, 3, 4, 5) }, { title: 'Sweep', value: 'logit difference' })
  expect(heat.kind).toBe('heat')
  expect(heat.data).toHaveLength(6)
  // Equal labels stay apart.
  expect(new Set(heat.data.map((d) => d.x)).size).toBe(3)
  expect(drawFigure(heat)).toContain('cat')
  const named = tableFigure({ axes, data: new Float32Array(6) }, { title: 'x', value: 'y', labels: { layer: ['first', 'last'] } })
  expect(named.y.domain).toEqual(['first', 'last'])
  const line = tableFigure({ axes: [{ name: 'layer', labels: ['0', '1'] }], data: [1, 2] }, { title: 'By layer', value: 'nats' })
  expect(line.kind).toBe('line')
  expect(() => tableFigure({ axes: [...axes, ...axes], data: new Float32Array(36) }, { title: 'x', value: 'y' })).toThrow(/two axes/)
  expect(() => tableFigure({ axes, data: [1] }, { title: 'x', value: 'y' })).toThrow(/6 values/)
})
