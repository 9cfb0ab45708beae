/** @file Text tables, and numbers as people read them. */

/** Columns aligned by spaces; columns whose cells are all numbers stand to the right. Lines have no trailing spaces. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [head, ...rows]
  const widths = head.map((_, i) => Math.max(...all.map((r) => displayWidth(r[i] ?? ''))))
  const right = head.map((_, i) => rows.length > 0 && rows.every((r) => /^(-?[\d.,]+(e[+-]?\d+)?( ?[a-zA-Z%]{1,3})?)?$/.test(r[i] ?? '')))
  const line = (cells: readonly string[]) =>
    cells
      .map((c, i) => {
        const space = ' '.repeat(Math.max(0, (widths[i] as number) - displayWidth(c)))
        return right[i] ? space + c : c + space
      })
      .join('  ')
      .trimEnd()
  return `${all.map(line).join('\n')}\n`
}

/** Characters of a text, counting those made of two code units once. */
function displayWidth(text: string): number {
  return [...text].length
}

/** A number with a few digits: `0.0312`, `14.7`, `1.2e-7`. */
export function short(value: number): string {
  if (value === 0 || !Number.isFinite(value)) return String(value)
  const size = Math.abs(value)
  if (size >= 1e6 || size < 1e-4) return value.toExponential(2)
  return size >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(4)))
}

/** Bytes with a unit: `60.8 MB`. */
export function bytes(count: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB']
  let value = count
  let unit = 0
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000
    unit++
  }
  return `${unit === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`
}

/** A text as one visible piece: quoted, its line breaks and controls spelled out. */
export function quoted(text: string): string {
  return JSON.stringify(text)
}
