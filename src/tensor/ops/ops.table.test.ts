import { describe, expect, it } from 'vitest'
import { differentiate } from '../grad.ts'
import { topological } from '../graph.ts'
import { apply, opTable, type Tensor } from '../tensor.ts'
import { input, opsMarkdown } from './index.ts'
import { gradientCases } from './testing/cases/index.ts'
import { graphOf } from './testing/check.ts'

const rows = [...opTable.values()]
const leaves = new Set(['input', 'constant', 'weight'])
const cases = Object.values(gradientCases).flat()

/** Ops whose rules the cases check: those on the way from what they differentiate, forward and in the gradients themselves. */
function opsOfCases(): Set<string> {
  const found = new Set<string>()
  const note = (of: readonly Tensor[], at: readonly Tensor[]) => {
    const below = new Set(at.map((t) => t.node))
    for (const node of topological(of))
      if (node.inputs.some((x) => x && below.has(x.node))) {
        below.add(node)
        found.add(node.op.name)
      }
  }
  for (const c of cases) {
    const { y, at } = graphOf(c)
    note([y], at)
    if (c.noSecond) continue
    const d = differentiate({ of: y.mul(input('seed', y.dtype, y.shape)).sum(), at })
    note(
      d.grads,
      at.map((t) => d.map(t)),
    )
  }
  return found
}

/** Rows whose rule refuses, which has a test of its own. */
const refusing = new Set(['dequantize_blocks', 'dequantize_grouped', 'gather_blocks'])
/** Rows whose rule is not the derivative of their values, which has a test of its own. */
const estimates = new Set(['fake_quantize'])

describe('the op table', () => {
  it.each(rows.map((row) => [row.name, row] as const))('has no hole at %s', (_, row) => {
    expect(row.doc).toMatch(/^[A-Za-z0-9(|][^\n]*\.$/)
    expect(typeof row.infer).toBe('function')
    if (!leaves.has(row.name)) expect(row.lower ?? row.expand, 'a lowering or an expansion').toBeDefined()
    expect(row.gradient ?? row.expand, "a gradient, 'none', or an expansion that has one").toBeDefined()
    if (row.fuses) expect(row.expand, 'an expansion for nodes that cannot be fused').toBeDefined()
  })

  it('has a gradient case for every row with a rule', () => {
    const covered = opsOfCases()
    const missing = rows.filter((row) => row.gradient !== 'none' && ![covered, refusing, estimates].some((set) => set.has(row.name)))
    expect(missing.map((row) => row.name)).toEqual([])
  })

  it('refuses missing inputs and unknown ops with a sentence', () => {
    expect(() => apply('add', [])).toThrow("'add' needs its input 0.")
    expect(() => apply('no_such_op', [])).toThrow("There is no op 'no_such_op' in the op table.")
  })

  it('documents itself', () => {
    const markdown = opsMarkdown()
    expect(markdown.split('\n')).toHaveLength(rows.length + 3)
    expect(markdown).toContain('| `matmul` |')
    expect(markdown).toContain(
      '| `argmax` | Index of the largest value along an axis, int64; the first one where several are equal. | fused | none |',
    )
    const names = [...markdown.matchAll(/^\| `(\w+)`/gm)].map((m) => m[1] as string)
    expect(names).toEqual([...names].sort())
  })
})
