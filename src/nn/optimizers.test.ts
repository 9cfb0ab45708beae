import { describe, expect, it } from 'vitest'
import { ShapeError, UsageError } from '../base/errors.ts'
import { add, mul, sub, type Tensor } from '../tensor/index.ts'
import { adafactor, muon } from './matrix-optimizers.ts'
import { adam, adamW, lion, type Optimizer, proximal, sgd } from './optimizers.ts'
import { ParameterSet } from './parameters.ts'
import { TrainingStep } from './step.ts'
import type { StepOptions } from './step-graph.ts'
import { drawn, relativeError, runtime, stream } from './testing/numbers.ts'
import recorded from './testing/recorded.json' with { type: 'json' }

const shapes = { a: [6, 4], b: [5] } as const
type Name = keyof typeof shapes
const names: readonly Name[] = ['a', 'b']

/** ½ Σ w (p − c)², five steps. */
async function quadratic(optimizer: StepOptions['optimizer'], rate: number, extra: Partial<StepOptions> = {}) {
  const next = stream(3)
  const take = (scale = 1, added = 0) =>
    Object.fromEntries(
      names
        .map((n) => [n, drawn(next, shapes[n], scale)])
        .map(([n, x]) => [n, { ...(x as ReturnType<typeof drawn>), data: (x as ReturnType<typeof drawn>).data.map((v) => v + added) }]),
    )
  const [start, centre, weight] = [take(2), take(), take(1, 1)]
  const parameters = ParameterSet.from(start)
  const inputs = Object.fromEntries(
    names.flatMap((n) => [`c.${n}`, `w.${n}`].map((key) => [key, { dtype: 'float32' as const, shape: shapes[n] }])),
  )
  const step = await TrainingStep.of(
    {
      model: (x, scope) =>
        names
          .map((n) => {
            const d = sub(
              scope.parameter(n, shapes[n], () => new Float32Array()),
              x[`c.${n}`] as Tensor,
            )
            return mul(mul(d, d), x[`w.${n}`] as Tensor)
              .sum()
              .mul(0.5)
          })
          .reduce((a, b) => add(a, b)),
      inputs,
      parameters,
      optimizer,
      decays: () => true,
      ...extra,
    },
    runtime,
  )
  const initial = parameters.copy()
  const batch = Object.fromEntries(
    names.flatMap((n) => [
      [`c.${n}`, centre[n]],
      [`w.${n}`, weight[n]],
    ]),
  ) as Record<string, ReturnType<typeof drawn>>
  for (let i = 1; i <= 5; i++) await step.update(batch, { rate, step: i })
  return { step, parameters, initial, centre, weight, batch }
}

/** The same in float64 by hand: the rule gets a parameter's values, gradients, its own memory and the step's number. */
type Rule = (p: number[], g: number[], memory: Record<string, number[]>, step: number) => number[]
function byHand(name: Name, run: Awaited<ReturnType<typeof quadratic>>, rule: Rule): number[] {
  const [c, w] = [run.centre[name], run.weight[name]].map((x) => [...(x as ReturnType<typeof drawn>).data]) as [number[], number[]]
  const memory: Record<string, number[]> = {}
  let p = [...(run.initial[name] as ReturnType<typeof drawn>).data]
  for (let t = 1; t <= 5; t++) {
    const g = p.map((v, i) => (w[i] as number) * (v - (c[i] as number)))
    p = rule(p, g, memory, t)
  }
  return p
}

const kept = (memory: Record<string, number[]>, name: string, like: number[]) => (memory[name] ??= like.map(() => 0))
const updated = (memory: Record<string, number[]>, name: string, like: number[], f: (old: number, i: number) => number) => {
  const next = kept(memory, name, like).map(f)
  memory[name] = next
  return next
}

const adamByHand =
  (rate: number, b1: number, b2: number, decay: number, decoupled: boolean): Rule =>
  (p, grads, memory, t) => {
    const g = grads.map((v, i) => v + (decoupled ? 0 : decay * (p[i] as number)))
    const m = updated(memory, 'm', g, (old, i) => b1 * old + (1 - b1) * (g[i] as number))
    const v = updated(memory, 'v', g, (old, i) => b2 * old + (1 - b2) * (g[i] as number) ** 2)
    return p.map(
      (x, i) =>
        x * (decoupled ? 1 - rate * decay : 1) -
        (rate * ((m[i] as number) / (1 - b1 ** t))) / (Math.sqrt((v[i] as number) / (1 - b2 ** t)) + 1e-8),
    )
  }

const sgdByHand =
  (rate: number, momentum: number, nesterov: boolean, decay: number): Rule =>
  (p, grads, memory) => {
    const g = grads.map((v, i) => v + decay * (p[i] as number))
    const m = updated(memory, 'm', g, (old, i) => momentum * old + (g[i] as number))
    return p.map((x, i) => x - rate * (nesterov ? (g[i] as number) + momentum * (m[i] as number) : (m[i] as number)))
  }

const lionByHand =
  (rate: number, b1: number, b2: number, decay: number): Rule =>
  (p, g, memory) => {
    const old = kept(memory, 'm', g)
    const direction = g.map((v, i) => Math.sign(b1 * (old[i] as number) + (1 - b1) * v))
    updated(memory, 'm', g, (o, i) => b2 * o + (1 - b2) * (g[i] as number))
    return p.map((x, i) => x - rate * ((direction[i] as number) + decay * x))
  }

/** Newton–Schulz on [6, 4] values in float64, as the paper writes it. */
const muonByHand =
  (rate: number, momentum: number, decay: number): Rule =>
  (p, g, memory) => {
    const [m, n] = [6, 4]
    const buffer = updated(memory, 'm', g, (o, i) => momentum * o + (1 - momentum) * (g[i] as number))
    const looked = g.map((v, i) => (1 - momentum) * v + momentum * (buffer[i] as number))
    // Wide: columns become rows.
    let y = Array.from({ length: n }, (_, r) => Array.from({ length: m }, (_, c) => looked[c * n + r] as number))
    const norm = Math.sqrt(y.flat().reduce((s, v) => s + v * v, 0))
    y = y.map((r) => r.map((v) => v / norm))
    const product = (a: number[][], b: number[][]) =>
      a.map((r) => (b[0] as number[]).map((_, c) => r.reduce((s, v, k) => s + v * ((b[k] as number[])[c] as number), 0)))
    const flipped = (a: number[][]) => (a[0] as number[]).map((_, c) => a.map((r) => r[c] as number))
    for (let i = 0; i < 5; i++) {
      const gram = product(y, flipped(y))
      const square = product(gram, gram)
      const mixed = gram.map((r, a) => r.map((v, b) => -4.775 * v + 2.0315 * ((square[a] as number[])[b] as number)))
      const added = product(mixed, y)
      y = y.map((r, a) => r.map((v, b) => 3.4445 * v + ((added[a] as number[])[b] as number)))
    }
    const scale = Math.sqrt(m / n)
    return p.map((x, i) => x * (1 - rate * decay) - rate * scale * ((y[i % n] as number[])[Math.floor(i / n)] as number))
  }

describe('optimisers', () => {
  it.each<[keyof typeof recorded.optimisers, Optimizer, number]>([
    ['sgd', sgd(), 0.1],
    ['sgdMomentum', sgd({ momentum: 0.9, weightDecay: 0.05 }), 0.1],
    ['sgdNesterov', sgd({ momentum: 0.8, nesterov: true }), 0.1],
    ['adam', adam({ weightDecay: 0.02 }), 0.05],
    ['adamW', adamW({ weightDecay: 0.1, betas: [0.8, 0.95] }), 0.05],
    ['adafactor', adafactor({ weightDecay: 0.1 }), 0.05],
  ])('%s does what PyTorch does', async (name, optimizer, rate) => {
    const { parameters } = await quadratic(optimizer, rate)
    for (const [i, n] of names.entries())
      expect(relativeError(parameters.get(n).data, recorded.optimisers[name][i] as number[])).toBeLessThan(2e-6)
  })

  it.each<[string, Optimizer, number, Rule, readonly Name[]]>([
    ['SGD', sgd({ momentum: 0.9, nesterov: true, weightDecay: 0.01 }), 0.1, sgdByHand(0.1, 0.9, true, 0.01), names],
    ['Adam', adam({ weightDecay: 0.1 }), 0.05, adamByHand(0.05, 0.9, 0.999, 0.1, false), names],
    ['AdamW', adamW({ weightDecay: 0.1 }), 0.05, adamByHand(0.05, 0.9, 0.999, 0.1, true), names],
    ['Lion', lion({ weightDecay: 0.1 }), 0.02, lionByHand(0.02, 0.9, 0.99, 0.1), names],
    ['Muon', muon({ weightDecay: 0.1 }), 0.02, muonByHand(0.02, 0.95, 0.1), ['a']],
  ])('%s does what its paper says', async (label, optimizer, rate, rule, of) => {
    const run = await quadratic(label === 'Muon' ? (_, shape) => (shape.length > 1 ? optimizer : sgd()) : optimizer, rate)
    for (const n of of) expect(relativeError(run.parameters.get(n).data, byHand(n, run, rule))).toBeLessThan(3e-6)
  })

  it('take proximal steps that leave exact zeros', async () => {
    const [rate, strength] = [0.1, 0.5]
    const run = await quadratic(proximal(sgd(), { strength }), rate)
    const soft: Rule = (p, g) =>
      p.map((x, i) => x - rate * (g[i] as number)).map((x) => Math.sign(x) * Math.max(0, Math.abs(x) - rate * strength))
    for (const n of names) {
      const expected = byHand(n, run, soft)
      expect(relativeError(run.parameters.get(n).data, expected)).toBeLessThan(2e-6)
      expect([...run.parameters.get(n).data].map((v) => v === 0)).toEqual(expected.map((v) => v === 0))
    }
    expect([...run.parameters.get('a').data].filter((v) => v === 0).length).toBeGreaterThan(0)
  })

  it('clip by the global norm, and by value', async () => {
    const norm = 0.7
    const { batch, centre, weight, initial, ...clipped } = await quadratic(sgd(), 0.1, { clip: { norm } })
    const p = Object.fromEntries(names.map((n) => [n, [...(initial[n] as ReturnType<typeof drawn>).data]]))
    for (let t = 0; t < 5; t++) {
      const g = Object.fromEntries(
        names.map((n) => [
          n,
          (p[n] as number[]).map(
            (v, i) =>
              ((weight[n] as ReturnType<typeof drawn>).data[i] as number) *
              (v - ((centre[n] as ReturnType<typeof drawn>).data[i] as number)),
          ),
        ]),
      )
      const length = Math.sqrt(names.flatMap((n) => g[n] as number[]).reduce((s, v) => s + v * v, 0))
      for (const n of names)
        p[n] = (p[n] as number[]).map((v, i) => v - 0.1 * ((g[n] as number[])[i] as number) * Math.min(1, norm / (length + 1e-6)))
    }
    for (const n of names) expect(relativeError(clipped.parameters.get(n).data, p[n] as number[])).toBeLessThan(2e-6)
    const byValue = await quadratic(sgd(), 0.1, { clip: { value: 0.3 } })
    const rule: Rule = (x, g) => x.map((v, i) => v - 0.1 * Math.max(-0.3, Math.min(0.3, g[i] as number)))
    for (const n of names) expect(relativeError(byValue.parameters.get(n).data, byHand(n, byValue, rule))).toBeLessThan(2e-6)
  })

  it('keep a running average of the parameters', async () => {
    const run = await quadratic(sgd(), 0.1, { average: { decay: 0.8 } })
    let average = [...(run.initial.a as ReturnType<typeof drawn>).data]
    byHand('a', run, (p, g) => {
      const next = p.map((v, i) => v - 0.1 * (g[i] as number))
      average = average.map((v, i) => 0.8 * v + 0.2 * (next[i] as number))
      return next
    })
    expect(relativeError((run.step.averages.a as ReturnType<typeof drawn>).data, average)).toBeLessThan(2e-6)
  })

  it('go through large parameters in pieces with the same result', async () => {
    const shape = [2048, 96]
    const [next, optimizer] = [stream(9), adamW({ weightDecay: 0.1 })]
    const [start, target] = [drawn(next, shape), drawn(next, shape)]
    const run = async (elementwise: boolean) => {
      const parameters = ParameterSet.from({ w: { ...start, data: start.data.slice() } })
      const step = await TrainingStep.of(
        {
          model: ({ x }, scope) => {
            const d = sub(
              scope.parameter('w', shape, () => new Float32Array()),
              x as Tensor,
            )
            return mul(d, d).sum()
          },
          inputs: { x: { dtype: 'float32', shape } },
          parameters,
          optimizer: { ...optimizer, elementwise },
          clip: { norm: 3 },
          average: { decay: 0.5 },
        },
        runtime,
      )
      for (let t = 1; t <= 3; t++) await step.update({ x: target }, { rate: 0.01, step: t })
      return [parameters.get('w').data, (step.averages.w as ReturnType<typeof drawn>).data]
    }
    const [pieces, whole] = [await run(true), await run(false)]
    for (const [i, values] of pieces.entries())
      expect(Buffer.compare(Buffer.from(values.buffer), Buffer.from((whole[i] as Float32Array).buffer))).toBe(0)
    expect(pieces[0]?.[0]).not.toBe(start.data[0])
  })

  it('that differ in settings keep their own scalars', async () => {
    const run = await quadratic((name) => adam({ betas: name === 'a' ? [0.9, 0.999] : [0.5, 0.9] }), 0.05)
    expect(relativeError(run.parameters.get('a').data, byHand('a', run, adamByHand(0.05, 0.9, 0.999, 0, false)))).toBeLessThan(3e-6)
    expect(relativeError(run.parameters.get('b').data, byHand('b', run, adamByHand(0.05, 0.5, 0.9, 0, false)))).toBeLessThan(3e-6)
  })

  it('that read an old state beside its new value are refused, since the new one is written over it', async () => {
    const late: Optimizer = {
      ...sgd({ momentum: 0.9 }),
      name: 'late',
      update: (u) => ({
        parameter: sub(u.parameter, mul(u.states.momentum as Tensor, u.scalars.rate as Tensor)),
        states: { momentum: add(mul(u.states.momentum as Tensor, 0.9), u.gradient) },
      }),
    }
    await expect(quadratic(late, 0.1)).rejects.toThrow("The optimiser late reads a state of 'a'")
  })

  it('refuse what makes no sense, in a sentence', async () => {
    expect(() => sgd({ nesterov: true })).toThrow(UsageError)
    expect(() => adam({ betas: [1, 0.9] })).toThrow('β₁')
    await expect(quadratic(muon(), 0.1)).rejects.toThrow(ShapeError)
  })
})
