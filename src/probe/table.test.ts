import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import * as fc from 'fast-check'
import { expect, it } from 'vitest'
import { temporaryFolder } from '../models/formats/testing.ts'
import { columnOf, parseCsv, readTable } from './table.ts'

async function file(name: string, content: string | Uint8Array): Promise<string> {
  const path = join(temporaryFolder(), name)
  await writeFile(path, content)
  return path
}

it('reads what RFC 4180 allows', () => {
  expect(parseCsv('\uFEFFa,b\r\n"x, ""y""","two\nlines"\r\n\r\n,\r\nlast,"q"', ',', 't')).toEqual([
    ['a', 'b'],
    ['x, "y"', 'two\nlines'],
    ['', ''],
    ['last', 'q'],
  ])
  expect(parseCsv('a,b\n1,', ',', 't')).toEqual([
    ['a', 'b'],
    ['1', ''],
  ])
  expect(parseCsv('s\tl\nhe said "no"\t1\n', '\t', 't')).toEqual([
    ['s', 'l'],
    ['he said "no"', '1'],
  ])
})

it('reads back whatever was quoted', () => {
  const field = fc.string({ unit: fc.constantFrom('a', ',', '"', '\n', '\r\n', ' ', 'é') })
  fc.assert(
    fc.property(
      fc.array(fc.array(field, { minLength: 2, maxLength: 4 }), { minLength: 1, maxLength: 6 }),
      fc.constantFrom('\n', '\r\n'),
      (rows, end) => {
        const text = rows.map((r) => r.map((f) => `"${f.replaceAll('"', '""')}"`).join(',') + end).join('')
        expect(parseCsv(text, ',', 't')).toEqual(rows)
      },
    ),
  )
})

it('reads files with a header, compressed or not, and finds columns', async () => {
  const table = await readTable(await file('a.csv.gz', gzipSync('text,label,extra\nhello,1,x\nworld,0,y\n')))
  expect(columnOf(table, undefined, ['sentence', 'text'], 'text')).toEqual({ name: 'text', values: ['hello', 'world'] })
  expect(columnOf(table, 'extra', [], 'label').values).toEqual(['x', 'y'])
  expect(() => columnOf(table, 'lable', [], 'label')).toThrow(
    /no column 'lable'; did you mean 'label'\? Its columns are text, label, extra\./,
  )
  expect(() => columnOf(table, undefined, ['class'], 'label')).toThrow(
    /no column for the label under a usual name \(class\); say which of text/,
  )
})

it('refuses broken tables with the line', async () => {
  const refuse = async (name: string, content: string | Uint8Array, message: RegExp) =>
    expect(readTable(await file(name, content))).rejects.toThrow(message)
  await refuse('a.csv', 'a,b\n"x,1\ny,2\n', /line 2: a quote is opened and never closed/)
  await refuse('a.csv', 'a,b\n"x"y,1\n', /line 2: 'y' follows a closing quote/)
  await refuse('a.csv', 'a,b\nx"y,1\n', /line 2: a quote stands inside a field/)
  await refuse('a.csv', 'a,b\n1,2\n1,2,3\n', /Row 2 of .* has 3 fields, but the header names 2 columns/)
  await refuse('a.csv', 'a,b\n', /a header and no rows/)
  await refuse('a.csv', '', /holds nothing/)
  await refuse('a.csv', Uint8Array.of(97, 10, 0xff), /no UTF-8/)
  await refuse('a.csv.gz', 'no gzip', /cannot be unpacked/)
  await refuse('a.xlsx', 'x', /does not say what it holds/)
  await expect(readTable('/nowhere/a.csv')).rejects.toThrow(/does not exist/)
})
