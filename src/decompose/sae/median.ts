/** @file The geometric median of some rows. */

/** Steps of Weiszfeld's algorithm at most, and the relative change at which it stops. */
const [mostSteps, tolerance] = [100, 1e-6]

/** The point whose distances to the rows of [rows · width] add up to the least, [width] (Weiszfeld 1937). */
export function geometricMedian(rows: Float32Array, width: number): Float64Array {
  const count = rows.length / width
  let guess = new Float64Array(width)
  for (let i = 0; i < rows.length; i++) guess[i % width] = (guess[i % width] as number) + (rows[i] as number) / count
  for (let step = 0; step < mostSteps; step++) {
    const next = new Float64Array(width)
    let weight = 0
    for (let r = 0; r < count; r++) {
      let squares = 0
      for (let j = 0; j < width; j++) squares += ((rows[r * width + j] as number) - (guess[j] as number)) ** 2
      const w = 1 / Math.max(Math.sqrt(squares), 1e-6)
      weight += w
      for (let j = 0; j < width; j++) next[j] = (next[j] as number) + w * (rows[r * width + j] as number)
    }
    let [moved, size] = [0, 0]
    for (let j = 0; j < width; j++) {
      next[j] = (next[j] as number) / weight
      moved += ((next[j] as number) - (guess[j] as number)) ** 2
      size += (next[j] as number) ** 2
    }
    guess = next
    if (moved <= tolerance ** 2 * size) break
  }
  return guess
}
