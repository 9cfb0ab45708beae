/** @file Products with few active features, which read only the rows that are active. */
import { gather, matmul, squeeze, type Tensor, unsqueeze } from '../tensor/index.ts'

/** For each row of `values` and `indices` [n, k], the sum of `values` times those rows of `decoder` [feature, width]: [n, width]. */
export function sparseDecode(values: Tensor, indices: Tensor, decoder: Tensor): Tensor {
  return squeeze(matmul(unsqueeze(values, 1), gather(decoder, indices)), 1)
}
