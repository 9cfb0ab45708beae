/** @file Reproducible Gaussian noise: a pure function of seed, place and coordinate, so that cached and recomputed runs agree. */

/** A standard normal number for one coordinate of one position; uniform bits by a mixing hash, then Box–Muller. */
export function gaussianAt(seed: number, site: string, row: number, position: number, coordinate: number): number {
  const base = mix(mix(mix(mix(seed | 0) ^ hashText(site)) ^ row) ^ position)
  const a = mix(base ^ (2 * coordinate))
  const b = mix(base ^ (2 * coordinate + 1) ^ 0x5bd1e995)
  const u = (a + 1) / 4294967297
  const v = b / 4294967296
  return Math.sqrt(-2 * Math.log(u)) * Math.cos(2 * Math.PI * v)
}

/** The 32-bit finaliser of MurmurHash3, unsigned. */
function mix(x: number): number {
  let h = x + 0x9e3779b9
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

function hashText(text: string): number {
  let h = 2166136261
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 16777619)
  return h
}
