/** @file What commands do with ONNX files: their sites, and a pass over their inputs by name. */
import { throwIfCancelled, UsageError } from '../base/errors.ts'
import type { NDArray } from '../base/types.ts'
import { openSafetensors, writeSafetensors } from '../models/formats/index.ts'
import { describeEdits } from '../run/edits-file.ts'
import type { GenerateOptions, OnnxActivation, OnnxGradientRequest, OnnxInputs, OnnxModel, OnnxSite, OnnxValue } from '../run/index.ts'
import type { DataEdit } from '../sites/index.ts'
import type { CommandContext, Outcome } from './command.ts'
import { short, table } from './table.ts'
import type { TextOrIds } from './texts.ts'
import { versions } from './version.ts'

/** Whether a MODEL is an ONNX file by its name. */
export const namesOnnx = (model: string) => /\.onnx$/i.test(model)

/** All tensors of an inputs file, under the names of the model's inputs. */
export async function readOnnxInputs(path: string): Promise<OnnxInputs> {
  const store = await openSafetensors(path)
  try {
    const inputs: Record<string, NDArray> = {}
    for (const name of store.tensors.keys()) inputs[name] = await store.readRaw(name)
    return inputs
  } finally {
    await store.close()
  }
}

/** Inputs from a file or from texts. */
export async function onnxInputs(
  model: OnnxModel,
  source: { inputs?: string | undefined; texts?: readonly TextOrIds[] | undefined },
): Promise<OnnxInputs> {
  if (source.inputs !== undefined) return readOnnxInputs(source.inputs)
  if (!source.texts)
    throw new UsageError('There is nothing to run on: give --inputs, a safetensors file with the inputs by their names, or --text.')
  return model.tokenInputs(source.texts.map((t) => (typeof t === 'string' ? model.tokenizer.encode(t) : t)))
}

/** The table of an ONNX file's sites. */
export function onnxSites(model: OnnxModel): Outcome {
  const sites = model.sites()
  const absent = [...model.absentSites()].map(([site, reason]) => ({ site, absent: reason }))
  const shape = (s: OnnxSite) => s.tensor.shape?.map((d) => d ?? '?')
  const shown = sites.filter((s) => s.tensor.kind !== 'weight' && s.tensor.op !== 'Constant')
  return {
    json: {
      model: model.origin.id,
      family: model.family ?? null,
      inputs: model.inputs.map((t) => ({ name: t.name, dtype: t.dtype ?? t.other, shape: t.shape ?? null })),
      outputs: model.outputs,
      sites: [
        ...sites.map((s) => ({
          site: s.site,
          kind: s.tensor.kind,
          dtype: s.tensor.dtype ?? s.tensor.other,
          shape: shape(s) ?? null,
          axes: s.axes ?? null,
          tensor: s.tensor.name,
        })),
        ...absent,
      ],
    },
    text: `${model.origin.id}: ${model.family ? `family ${model.family}` : 'no family that is recognised'}; ${sites.length} sites (weights and constants are left out below)\n${table(
      ['site', 'type', 'shape', 'made by'],
      [
        ...shown.map((s) => [
          s.site,
          s.tensor.dtype ?? s.tensor.other ?? '',
          shape(s) ? `[${shape(s)?.join(', ')}]` : 'not known before a run',
          s.site.startsWith('path:') ? (s.tensor.op ?? 'input') : s.tensor.name,
        ]),
        ...absent.map((a) => [a.site, '', '', `missing: ${a.absent}`]),
      ],
    )}`,
  }
}

/** Numbers that tell what a tensor looks like. */
function statistics(name: string, value: OnnxValue & { readonly axes?: readonly string[] }) {
  let [count, sum, squares, maxAbs, notFinite] = [0, 0, 0, 0, 0]
  const halves = value.dtype === 'float16' || value.dtype === 'bfloat16' || value.dtype === 'string'
  if (!halves)
    for (const raw of value.data as ArrayLike<number | bigint> & Iterable<number | bigint>) {
      const v = Number(raw)
      if (!Number.isFinite(v)) {
        notFinite++
        continue
      }
      count++
      sum += v
      squares += v * v
      maxAbs = Math.max(maxAbs, Math.abs(v))
    }
  const mean = count > 0 ? sum / count : 0
  const std = count > 0 ? Math.sqrt(Math.max(0, squares / count - mean * mean)) : 0
  return {
    site: name,
    dtype: value.dtype,
    shape: value.shape,
    ...(value.axes ? { axes: value.axes } : {}),
    ...(halves ? {} : { mean, std, maxAbs, notFinite }),
  }
}

/** Writes on from a prompt, the text (or without a tokenizer the ids) as it comes; returns what was written. */
export async function streamOnnx(
  context: CommandContext,
  model: OnnxModel,
  prompt: readonly number[],
  settings: GenerateOptions,
): Promise<unknown> {
  const { maxNewTokens, signal, stop: _, taps: __, logProbabilities: ___, ...sampling } = settings
  const steps = model.generate(prompt, { ...sampling, ...(maxNewTokens ? { maxNewTokens } : {}), ...(signal ? { signal } : {}) })
  let first = true
  for (;;) {
    const next = await steps.next()
    if (next.done) {
      if (!first) await context.write('\n')
      const { tokens, promptTokens, tokensPerSecond, finishReason } = next.value
      context.note(
        `${tokens.length} tokens after ${promptTokens}, ${tokensPerSecond.toFixed(1)} tokens a second, ended by ${finishReason}.`,
      )
      return next.value
    }
    await context.write(model.hasTokenizer ? next.value.text : `${first ? 'ids:' : ','}${next.value.token}`)
    first = false
  }
}

/** One pass of an ONNX file. */
export async function onnxRun(
  context: CommandContext,
  { model, edits }: { model: OnnxModel; edits: readonly DataEdit[] },
  options: { taps: readonly string[]; outputs: boolean; out?: string | undefined; inputs: OnnxInputs },
): Promise<Outcome> {
  const sites = [...new Set(options.taps.flatMap((t) => model.resolve(t).map((s) => s.site)))]
  const result = await model.run(options.inputs, { taps: sites, ...(options.outputs ? {} : { outputs: [] }), signal: context.io.signal })
  throwIfCancelled(context.io.signal)
  for (const sentence of result.unfired) context.warn(sentence)
  const values = new Map<string, OnnxValue>([
    ...Object.entries(result.outputs),
    ...sites.map((s) => [s, result.taps[s] as OnnxActivation as OnnxValue] as const),
  ])
  if (options.out !== undefined) {
    const texts = [...values].filter(([, v]) => v.dtype === 'string').map(([n]) => n)
    if (texts.length > 0) context.warn(`${texts.join(', ')} hold texts, which a safetensors file cannot; they were not stored.`)
    const arrays = [...Object.entries(options.inputs), ...values].filter(([, v]) => v.dtype !== 'string')
    const record = {
      model: { id: model.origin.id, hash: await model.origin.hash() },
      edits: describeEdits(edits),
      device: context.common.device ?? 'cpu',
      versions: await versions(),
    }
    const tensors = Object.fromEntries(arrays.map(([name, { dtype, shape, data }]) => [name, { dtype, shape, data } as NDArray]))
    await writeSafetensors(options.out, tensors, { actlens: JSON.stringify(record) })
    context.note(`${arrays.length} tensors were written to ${options.out}.`)
  }
  const all = [...values].map(([name, v]) => statistics(name, v))
  return {
    json: { model: model.origin.id, tensors: all, unfired: result.unfired, ...(options.out === undefined ? {} : { out: options.out }) },
    text: table(
      ['tensor', 'type', 'shape', 'mean', 'std', 'max |x|'],
      all.map((s) => [
        s.site,
        s.dtype,
        `[${s.shape.join(', ')}]`,
        ...[s.mean, s.std, s.maxAbs].map((v) => (v === undefined ? '' : short(v))),
      ]),
    ),
  }
}

/** The loss that `--of` means for an ONNX file: tokens are ids, and the sum of any site can be differentiated. */
export function onnxLoss(text: string, position: number | undefined): OnnxGradientRequest['of'] {
  const place = position === undefined ? {} : { position }
  const parts = /^(next-token|mean-square)$|^sum:(.+)$|^logit:(?:ids:)?(\d+)$|^logit-difference:(?:ids:)?(\d+),(?:ids:)?(\d+)$/.exec(text)
  if (!parts)
    throw new UsageError(
      `'${text}' is no loss for an ONNX file: write next-token, mean-square, logit:7, logit-difference:7,8 (token ids) or sum:SITE.`,
    )
  const [, kind, site, token, a, b] = parts
  if (position !== undefined && (kind || site))
    throw new UsageError(`--position is for logit and logit-difference; ${text} looks at all positions.`)
  if (kind) return { kind: kind as 'next-token' | 'mean-square' }
  if (site) return { sum: site }
  return token !== undefined
    ? { kind: 'logit', token: Number(token), ...place }
    : { kind: 'logit-difference', tokens: [Number(a), Number(b)], ...place }
}

/** Gradients in an ONNX file, stored as `grad.SITE` and `grad.param.NAME`. */
export async function onnxGradient(
  context: CommandContext,
  { model, edits }: { model: OnnxModel; edits: readonly DataEdit[] },
  options: { of: OnnxGradientRequest['of']; at: readonly string[]; parameters: readonly string[]; out: string; inputs: OnnxInputs },
): Promise<Outcome> {
  const { of, at, parameters, out, inputs } = options
  const result = await model.gradient({ of, at, parameters }, inputs, { signal: context.io.signal })
  const arrays = [
    ...Object.entries(result.sites).map(([site, { dtype, shape, data }]) => [`grad.${site}`, { dtype, shape, data } as NDArray] as const),
    ...Object.entries(result.parameters).map(([name, g]) => [`grad.param.${name}`, g] as const),
  ]
  const record = {
    of,
    model: { id: model.origin.id, hash: await model.origin.hash() },
    edits: describeEdits(edits),
    versions: await versions(),
  }
  const loss: NDArray = { dtype: 'float32', shape: [], data: Float32Array.of(result.value) }
  const given = Object.fromEntries(Object.entries(inputs).filter(([, v]) => v.dtype !== 'string')) as Record<string, NDArray>
  await writeSafetensors(out, { ...given, loss, ...Object.fromEntries(arrays) }, { actlens: JSON.stringify(record) })
  context.note(`${arrays.length} gradients were written to ${out}.`)
  const norm = (a: NDArray) => Math.sqrt((a.data as Float32Array).reduce((s, v) => s + v * v, 0))
  const rows = arrays.map(([name, a]) => ({ name, shape: a.shape, norm: norm(a) }))
  return {
    json: { model: model.origin.id, of, value: result.value, gradients: rows, out },
    text: `value ${short(result.value)}\n\n${table(
      ['gradient', 'shape', 'norm'],
      rows.map((r) => [r.name, `[${r.shape.join(', ')}]`, short(r.norm)]),
    )}`,
  }
}
