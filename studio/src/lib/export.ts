/** @file Pictures and tables to keep: SVG, PNG, CSV, JSON. */

/** Gives the reader a file. */
export function download(name: string, content: Blob | string, type = 'text/plain'): void {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type: `${type};charset=utf-8` }))
  const link = document.createElement('a')
  link.href = url
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(url), 10_000)
}

/** A table as CSV: quotes where they are needed, lines ended as the standard wants. */
export function csv(rows: readonly (readonly (string | number)[])[]): string {
  const cell = (v: string | number) => (typeof v === 'string' && /[",\r\n]|^\s|\s$/.test(v) ? `"${v.replaceAll('"', '""')}"` : String(v))
  return rows.map((r) => `${r.map(cell).join(',')}\r\n`).join('')
}

/** An SVG picture as PNG, at twice its size. */
export async function toPng(svg: string, scale = 2): Promise<Blob> {
  const image = new Image()
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`
  await image.decode()
  const canvas = document.createElement('canvas')
  canvas.width = image.width * scale
  canvas.height = image.height * scale
  const context = canvas.getContext('2d') as CanvasRenderingContext2D
  context.scale(scale, scale)
  context.drawImage(image, 0, 0)
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error('The picture is too large for a PNG; take the SVG.')))),
  )
}

/** Text for use in SVG. */
export const escapeXml = (text: string) =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;')

/** An SVG file around its content. */
export function svgFile(width: number, height: number, background: string, content: string): string {
  const [w, h] = [Math.ceil(width), Math.ceil(height)]
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${w}" height="${h}" viewBox="0 0 ${w} ${h}"><rect width="100%" height="100%" fill="${background}"/>${content}</svg>`
}

/** An SVG on the page as a file of its own, on a background. */
export function svgOf(root: SVGSVGElement, background: string): string {
  const copy = root.cloneNode(true) as SVGSVGElement
  copy.setAttribute('xmlns', 'http://www.w3.org/2000/svg')
  const back = document.createElementNS('http://www.w3.org/2000/svg', 'rect')
  for (const [name, value] of Object.entries({ width: '100%', height: '100%', fill: background })) back.setAttribute(name, value)
  copy.prepend(back)
  return copy.outerHTML
}

/** The words of an element as SVG, where and how they stand on the page: for text that is set by the browser. */
export function textAsSvg(root: HTMLElement): string {
  const frame = root.getBoundingClientRect()
  const parts: string[] = []
  const background = getComputedStyle(document.body).backgroundColor
  for (const span of root.querySelectorAll<HTMLElement>('[data-token]')) {
    const style = getComputedStyle(span)
    for (const box of span.getClientRects()) {
      if (style.backgroundColor !== 'rgba(0, 0, 0, 0)')
        parts.push(
          `<rect x="${box.left - frame.left}" y="${box.top - frame.top}" width="${box.width}" height="${box.height}" fill="${style.backgroundColor}"/>`,
        )
    }
    const box = span.getClientRects()[0]
    if (!box) continue
    const size = Number.parseFloat(style.fontSize)
    const baseline = box.top - frame.top + (box.height + size * 0.66) / 2
    parts.push(
      `<text xml:space="preserve" x="${box.left - frame.left}" y="${baseline}" font-family="${escapeXml(style.fontFamily)}" font-size="${size}" fill="${style.color}" fill-opacity="${style.opacity}">${escapeXml(span.textContent ?? '')}</text>`,
    )
  }
  return svgFile(root.scrollWidth, root.scrollHeight, background, parts.join(''))
}
