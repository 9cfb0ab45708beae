/** @file SentencePiece's way to merge symbols into vocabulary pieces: of all neighbours whose union is a piece, the best score first. */

interface Pair {
  readonly score: number
  /** Index of the left and the right symbol. */
  readonly left: number
  readonly right: number
  /** Characters of both; when they have changed, the pair is out of date. */
  readonly length: number
}

/** The better pair: higher score, then further left. */
const before = (a: Pair, b: Pair): boolean => a.score > b.score || (a.score === b.score && a.left < b.left)

/**
 * Merges neighbouring symbols until no two of them form a piece, always those whose union has the highest score, the leftmost
 * among equals. O(n log n) in the number of symbols, with the result of searching all pairs again after each merge.
 */
export function mergeByScore(symbols: readonly string[], scoreOf: (piece: string) => number | undefined): string[] {
  const text: string[] = [...symbols]
  const previous = Int32Array.from(text, (_, i) => i - 1)
  const next = Int32Array.from(text, (_, i) => (i + 1 < text.length ? i + 1 : -1))
  const heap: Pair[] = []
  const consider = (left: number, right: number): void => {
    if (left < 0 || right < 0) return
    const union = (text[left] as string) + (text[right] as string)
    const score = scoreOf(union)
    if (score !== undefined) push(heap, { score, left, right, length: union.length })
  }
  for (let i = 1; i < text.length; i++) consider(i - 1, i)
  for (let pair = pop(heap); pair !== undefined; pair = pop(heap)) {
    const { left, right, length } = pair
    const a = text[left] as string
    const b = text[right] as string
    // A symbol that was merged into its left neighbour is empty.
    if (a === '' || b === '' || a.length + b.length !== length) continue
    text[left] = a + b
    text[right] = ''
    const after = next[right] as number
    next[left] = after
    if (after >= 0) previous[after] = left
    consider(previous[left] as number, left)
    consider(left, after)
  }
  return text.filter((symbol) => symbol !== '')
}

function push(heap: Pair[], pair: Pair): void {
  let at = heap.length
  while (at > 0) {
    const parent = (at - 1) >> 1
    const above = heap[parent] as Pair
    if (!before(pair, above)) break
    heap[at] = above
    at = parent
  }
  heap[at] = pair
}

function pop(heap: Pair[]): Pair | undefined {
  const top = heap[0]
  const last = heap.pop()
  if (top === undefined || last === undefined || heap.length === 0) return top
  let at = 0
  for (;;) {
    let child = 2 * at + 1
    if (child >= heap.length) break
    if (child + 1 < heap.length && before(heap[child + 1] as Pair, heap[child] as Pair)) child++
    if (!before(heap[child] as Pair, last)) break
    heap[at] = heap[child] as Pair
    at = child
  }
  heap[at] = last
  return top
}
