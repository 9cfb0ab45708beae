/** @file The node tests of the ONNX project; ACTLENS_ONNX_NODE_TESTS names their folder (`onnx/backend/test/data/node` of the Python package). */
import { expect, test } from 'vitest'
import { type NodeTestResult, nodeTests, runNodeTest } from './node-tests.ts'

const folder = process.env.ACTLENS_ONNX_NODE_TESTS

test.skipIf(!folder)(
  'every node test that the plain runtime runs gives the same here, every float tensor tapped',
  async () => {
    const results: NodeTestResult[] = []
    for (const name of nodeTests(folder as string)) results.push(await runNodeTest(folder as string, name))
    const of = (outcome: NodeTestResult['outcome']) => results.filter((r) => r.outcome === outcome)
    console.log(
      `${of('same').length} of ${results.length} node tests are the same with ${results.reduce((n, r) => n + r.tapped, 0)} tensors tapped; the plain runtime does not run ${of('not run').length}`,
    )
    expect([...of('different'), ...of('failed')]).toEqual([])
    expect(of('same').length).toBeGreaterThan(0)
  },
  1_200_000,
)
