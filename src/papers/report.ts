/** @file The report of a reproduction: one HTML file that opens offline, pictures inside. */
import { drawFigure } from '../plot/index.ts'
import { type Cell, type Paper, paperFamilies, type Table } from './paper.ts'
import type { PaperResult } from './run.ts'
import { round } from './verdict.ts'

/** The report as HTML text. */
export function reportOf(paper: Paper, result: PaperResult): string {
  const { verdict } = result
  const body = [
    `<header><p class="kind">${html(paperFamilies[paper.family])}</p><h1>${html(paper.title)}</h1>`,
    `<p class="by">${html(paper.authors)} · ${source(paper.source)}</p>`,
    `<p class="question">${html(paper.question)}</p></header>`,
    result.quick ? '<p class="quick">This is a quick run: a smoke test with one seed and small numbers. It proves nothing.</p>' : '',
    `<section class="verdict ${verdict}"><p class="word">${verdict}</p><p>${html(result.reason)}</p></section>`,
    section('Claim, ours, baselines, controls', claimTable(result)),
    section('Gates', gateTable(result)),
    ...result.figures.map(
      (f) => `<figure id="${html(f.name)}"><h3>${html(f.title)}</h3>${drawFigure(f)}<figcaption>${html(f.caption)}</figcaption></figure>`,
    ),
    ...result.tables.map((t) => section(t.title, tableOf(t) + (t.note ? `<p class="note">${html(t.note)}</p>` : ''), t.name === 'metrics')),
    section(
      'What this is, and what it is not',
      `<p>${html(paper.data)}</p><p>${html(paper.scale)}</p>${list('Not reproduced here', paper.notReproduced)}${list('Read with care', paper.notes ?? [])}`,
    ),
    section('To make it again', `<pre>${html(result.command)}</pre>${facts(result)}`),
  ]
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>${html(paper.slug)} — ${verdict}</title><style>${style}</style></head>
<body><main>${body.filter((b) => b).join('\n')}</main></body></html>
`
}

const html = (text: string): string =>
  text.replace(/[&<>"']/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' })[c] as string)

const source = (s: string) =>
  /^\d{4}\.\d{4,5}$/.test(s) ? `<a href="https://arxiv.org/abs/${s}">arXiv ${s}</a>` : `<a href="${html(s)}">${html(s)}</a>`

const section = (title: string, content: string, folded = false) =>
  folded ? `<details><summary>${html(title)}</summary>${content}</details>` : `<section><h2>${html(title)}</h2>${content}</section>`

const cell = (c: Cell) =>
  c === null ? '<td class="n">–</td>' : typeof c === 'number' ? `<td class="n">${round(c)}</td>` : `<td>${html(c)}</td>`

const tableOf = ({ columns, rows }: Pick<Table, 'columns' | 'rows'>) =>
  `<div class="wide"><table><thead><tr>${columns.map((c, i) => `<th${typeof rows[0]?.[i] === 'number' ? ' class="n"' : ''}>${html(c)}</th>`).join('')}</tr></thead><tbody>${rows.map((r) => `<tr>${r.map(cell).join('')}</tr>`).join('')}</tbody></table></div>`

const list = (title: string, items: readonly string[]) =>
  items.length === 0 ? '' : `<h3>${html(title)}</h3><ul>${items.map((i) => `<li>${html(i)}</li>`).join('')}</ul>`

function claimTable({ claim, ours, interval, baselines, controls }: PaperResult): string {
  const rows: Cell[][] = [
    ['claim', claim.text, claim.threshold],
    [
      'ours',
      `${claim.metric}${interval[0] === interval[1] ? '' : ` (95 % interval ${round(interval[0] ?? Number.NaN)} to ${round(interval[1] ?? Number.NaN)})`}`,
      ours,
    ],
    ...Object.entries(baselines).map(([name, v]): Cell[] => ['baseline', name, v]),
    ...Object.entries(controls).map(([name, v]): Cell[] => ['control', name, v]),
  ]
  return tableOf({ columns: ['', '', claim.metric], rows })
}

function gateTable({ gates }: PaperResult): string {
  const rows = gates.map((g): Cell[] => [
    g.passed ? '✓ holds' : '✗ fails',
    g.role,
    g.text,
    g.mean,
    g.bound,
    g.values.length > 1 ? g.values.map(round).join(' · ') : '',
  ])
  return tableOf({ columns: ['', 'role', 'what must hold', 'mean', 'wanted', 'by seed'], rows })
}

function facts(r: PaperResult): string {
  const rows = Object.entries({
    model: r.model,
    precision: r.precision,
    seeds: r.seeds.join(', '),
    seconds: String(r.seconds),
    machine: r.machine,
    versions: Object.entries(r.versions)
      .map(([k, v]) => `${k} ${v}`)
      .join(', '),
  })
  return tableOf({ columns: ['', ''], rows })
}

const style = `
:root{color-scheme:light dark;--ink:#1c1c1c;--soft:#595959;--line:#ddd;--page:#fdfdfb;--good:#00664a;--bad:#a33b00;--open:#5d5300}
@media (prefers-color-scheme:dark){:root{--ink:#e8e6e1;--soft:#aaa;--line:#3a3a3a;--page:#161616;--good:#5fd0a8;--bad:#ff9a66;--open:#d9c94f}figure svg{filter:invert(.92) hue-rotate(180deg)}}
body{margin:0;background:var(--page);color:var(--ink);font:17px/1.55 Charter,Georgia,serif}
main{max-width:760px;margin:0 auto;padding:32px 20px 80px}
h1{font-size:1.9em;line-height:1.2;margin:.1em 0}h2{font-size:1.15em;margin:2em 0 .5em}h3{font-size:1em;margin:1.4em 0 .3em}
.kind,.by,.note,figcaption{color:var(--soft);font-size:.88em}.question{font-size:1.2em;font-style:italic}
.quick{border:1px dashed var(--soft);padding:8px 12px}
.verdict{border-left:5px solid;padding:2px 16px;margin:1.5em 0}.verdict .word{font-weight:bold;font-size:1.3em;margin:.2em 0}
.reproduced{border-color:var(--good)}.reproduced .word{color:var(--good)}.refuted{border-color:var(--bad)}.refuted .word{color:var(--bad)}.inconclusive{border-color:var(--open)}.inconclusive .word{color:var(--open)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85em;width:100%}th,td{text-align:left;padding:4px 10px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}td:first-child{white-space:nowrap}
.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}figure{margin:2em 0}figure svg{max-width:100%;height:auto}
pre{background:color-mix(in srgb,var(--ink) 7%,transparent);padding:10px 14px;overflow-x:auto;font-size:.85em}summary{cursor:pointer;margin:1.5em 0 .5em;font-weight:bold}a{color:inherit}
`
