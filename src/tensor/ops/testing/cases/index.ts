/** @file All gradient cases, by family. */
import type { Case } from '../check.ts'
import { attentionCases } from './attention.ts'
import { elementwiseCases } from './elementwise.ts'
import { imageCases } from './image.ts'
import { layoutCases } from './layout.ts'
import { quantizedCases } from './quantized.ts'
import { reduceCases } from './reduce.ts'

/** Cases of every op that has a gradient. */
export const gradientCases: Readonly<Record<string, readonly Case[]>> = {
  elementwise: elementwiseCases,
  layout: layoutCases,
  reduce: reduceCases,
  attention: attentionCases,
  image: imageCases,
  quantized: quantizedCases,
}
