/** @file Cross-validation folds that keep groups together and classes in proportion. */
import { UsageError } from '../base/errors.ts'
import { randomStream } from '../models/sampling.ts'

/** Numbers 0, 1, 2 … for equal keys, in order of first appearance. */
export function groupsOf(keys: readonly string[]): Int32Array {
  const known = new Map<string, number>()
  return Int32Array.from(keys, (key) => {
    const group = known.get(key) ?? known.size
    known.set(key, group)
    return group
  })
}

/**
 * Assigns each example to one of `count` folds: a group lies in one fold whole, and each fold gets its share of each class as nearly
 * as whole groups allow (largest groups first, ties broken by the seed).
 * @throws UsageError where a class has too few groups to be both learned from and held out.
 */
export function makeFolds(groups: Int32Array, classes: Int32Array, count: number, seed: number): Int32Array {
  const random = randomStream(seed)
  const members = new Map<number, number[]>()
  for (const [i, g] of groups.entries()) {
    const list = members.get(g)
    if (list) list.push(i)
    else members.set(g, [i])
  }
  if (members.size < count)
    throw new UsageError(`There are ${members.size} different source texts, too few for ${count} folds; give more, or ask for fewer folds.`)
  const kinds = classes.reduce((most, c) => Math.max(most, c + 1), 0)
  const order = [...members.values()]
    .map((list) => ({ list, tie: random() }))
    .sort((a, b) => b.list.length - a.list.length || a.tie - b.tie)
  const held = Array.from({ length: count }, () => new Float64Array(kinds))
  const sizes = new Float64Array(count)
  const folds = new Int32Array(groups.length)
  for (const { list } of order) {
    const own = new Float64Array(kinds)
    for (const i of list) own[classes[i] as number] = (own[classes[i] as number] as number) + 1
    // The fold that has least of what the group brings, then the smallest one.
    const load = (f: number) => own.reduce((sum, n, k) => sum + n * ((held[f] as Float64Array)[k] as number), 0)
    let best = 0
    for (let f = 1; f < count; f++) {
      const [mine, other] = [load(f), load(best)]
      if (mine < other || (mine === other && (sizes[f] as number) < (sizes[best] as number))) best = f
    }
    for (const i of list) folds[i] = best
    sizes[best] = (sizes[best] as number) + list.length
    for (let k = 0; k < kinds; k++) {
      const row = held[best] as Float64Array
      row[k] = (row[k] as number) + (own[k] as number)
    }
  }
  return folds
}
