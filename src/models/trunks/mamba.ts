/** @file The trunk of Mamba: a convolution along the tokens and a selective state space in each block (arXiv 2312.00752). */
import {
  add,
  constant,
  cut,
  exp,
  gather,
  gatherRows,
  greaterEqual,
  input,
  iota,
  maximum,
  mul,
  neg,
  reshape,
  scalar,
  scan,
  silu,
  slice,
  softplus,
  squeeze,
  sub,
  sum,
  type Tensor,
  transpose,
  unsqueeze,
  where,
} from '../../tensor/index.ts'
import type { MambaSpec } from '../encoder-spec.ts'
import { inputNames, type TracedModel, type TraceOptions } from '../traced.ts'
import { type Parameters, Parts } from './parts.ts'

/** Traces a Mamba language model; every run goes through the whole row. */
export function traceMamba(spec: MambaSpec, parameters: Parameters, options: TraceOptions): TracedModel {
  const parts = new Parts(parameters)
  const ids = input(inputNames.ids, 'int64', ['batch', 'pos'])
  let x = cut(parts.mark('embeddings', gather(parameters.get(spec.embedding, [spec.vocab, spec.dModel]), ids)), 0)
  for (let layer = 0; layer < spec.layers; layer++) {
    const pre = parts.mark(`resid_pre.${layer}`, layer === 0 ? x : cut(x, layer))
    const read = parts.mark(`mixer_in.${layer}`, parts.norm('mixer_in', `.${layer}`, spec.norm(layer), pre))
    const out = parts.mark(`mixer_out.${layer}`, mixer(spec, parameters, parts, read, layer))
    x = parts.mark(`resid_post.${layer}`, add(pre, out))
  }
  x = cut(x, spec.layers)
  if (options.lastOnly) x = unsqueeze(gatherRows(x, input(inputNames.lastIndex, 'int64', ['batch'])), 1)
  x = parts.mark('final_norm', parts.norm('final_norm', '', spec.finalNorm, x))
  const logits = parts.mark('logits', parts.mark('logits_pre', parts.linear(x, spec.head, spec.dModel, spec.vocab)))
  return { logits, sites: parts.marks.sites, inner: parts.marks.inner, caches: [] }
}

function mixer(spec: MambaSpec, parameters: Parameters, parts: Parts, x: Tensor, layer: number): Tensor {
  const { dModel, inner, states, rank } = spec
  const m = spec.mixer(layer)
  const mark = (name: string, t: Tensor) => parts.mark(`${name}.${layer}`, t)
  const both = parts.linear(x, m.in, dModel, 2 * inner)
  const gate = mark('mixer_gate', slice(both, 2, inner, 2 * inner))
  const u = mark('ssm_in', silu(convolved(spec, parameters, m, slice(both, 2, 0, inner))))
  const selected = parts.linear(u, m.select, inner, rank + 2 * states)
  const step = mark('ssm_step', softplus(parts.linear(slice(selected, 2, 0, rank), m.step, rank, inner)))
  const [b, c] = [slice(selected, 2, rank, rank + states), slice(selected, 2, rank + states, rank + 2 * states)]
  const decay = neg(exp(parameters.get(m.logDecay, [inner, states])))
  const y = add(selectiveScan({ u, step, b, c, decay }, states), mul(u, parameters.get(m.skip, [inner])))
  return parts.linear(mark('ssm_out', mul(y, silu(gate))), m.out, inner, dModel)
}

/** Each channel mixed with its values at the `kernel − 1` tokens before. */
function convolved(spec: MambaSpec, parameters: Parameters, m: ReturnType<MambaSpec['mixer']>, x: Tensor): Tensor {
  const { inner, kernel } = spec
  const weight = reshape(parameters.get(m.convolution.weight, [inner, 1, kernel]), [inner, kernel])
  const places = iota(x, 1)
  const taps = Array.from({ length: kernel }, (_, k) => {
    const back = sub(places, scalar(kernel - 1 - k, 'int64'))
    const there = unsqueeze(unsqueeze(greaterEqual(back, scalar(0, 'int64')), 0), 2)
    const moved = where(there, gather(x, maximum(back, scalar(0, 'int64')), 1), 0)
    return mul(moved, squeeze(slice(weight, 1, k, k + 1), 1))
  })
  const mixed = taps.reduce((a, t) => add(a, t))
  return m.convolution.bias ? add(mixed, parameters.get(m.convolution.bias, [inner])) : mixed
}

/** h_t = exp(Δ_t A)·h_{t−1} + Δ_t B_t u_t and y_t = C_t·h_t, with what is selected by each token; all [batch, pos, …]. */
function selectiveScan(
  { u, step, b, c, decay }: { readonly u: Tensor; readonly step: Tensor; readonly b: Tensor; readonly c: Tensor; readonly decay: Tensor },
  states: number,
): Tensor {
  const inOrder = [step, u, b, c].map((t) => transpose(t, [1, 0, 2]))
  const first = unsqueeze(squeeze(slice(inOrder[0] as Tensor, 0, 0, 1), 0), 2)
  const empty = mul(first, constant('float32', [states], new Float32Array(states)))
  const { each } = scan([empty], inOrder, ([h], items) => {
    const [dt, ut, bt, ct] = items as [Tensor, Tensor, Tensor, Tensor]
    const kept = mul(exp(mul(unsqueeze(dt, 2), decay)), h as Tensor)
    const next = add(kept, mul(unsqueeze(mul(dt, ut), 2), unsqueeze(bt, 1)))
    return { carry: [next], each: [sum(mul(next, unsqueeze(ct, 1)), [2])] }
  })
  return transpose(each[0] as Tensor, [1, 0, 2])
}
