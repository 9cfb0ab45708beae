/** @file Generation with an ONNX decoder: the file's own key-value cache, its edits in force at every step. */
import { ModelError, throwIfCancelled, UsageError } from '../../base/errors.ts'
import type { NDArray } from '../../base/types.ts'
import { checkSampling, penalise, randomStreams, Sampler, type SamplingOptions } from '../../models/sampling.ts'
import { createDecoder } from '../../models/text/tokenizer.ts'
import type { OnnxValue } from './core.ts'
import { isCache } from './inputs.ts'
import type { OnnxModel } from './model.ts'

/** Options of a generation. */
export interface OnnxGenerateOptions extends SamplingOptions {
  /** Most tokens to write (default 128). */
  readonly maxNewTokens?: number
  /** Goes on after an end-of-text token. */
  readonly ignoreEos?: boolean
  readonly signal?: AbortSignal
}

/** One token, as it comes. */
export interface OnnxGenerationStep {
  readonly token: number
  /** Text that it completed; empty without a tokenizer, or while a character is incomplete. */
  readonly text: string
}

/** What was written. */
export interface OnnxGenerationResult {
  readonly text: string
  readonly tokens: readonly number[]
  readonly promptTokens: number
  readonly finishReason: 'stop' | 'length'
  readonly tokensPerSecond: number
}

/** The output that holds what a cache input is fed in the next step: `past_key_values.0.key` comes out as `present.0.key`. */
const presentOf = (input: string) => input.replace(/^past_key_values\./, 'present.').replace(/^past_/, 'present_')

/** Writes one token after another. */
export async function* generateOnnx(
  model: OnnxModel,
  prompt: string | readonly number[],
  options: OnnxGenerateOptions,
): AsyncGenerator<OnnxGenerationStep, OnnxGenerationResult, undefined> {
  checkSampling(options)
  const limit = options.maxNewTokens ?? 128
  if (!Number.isInteger(limit) || limit < 1) throw new UsageError(`maxNewTokens must be a positive integer, not ${limit}.`)
  if (!model.outputs.includes('logits') || !model.inputs.some((t) => t.name === 'input_ids'))
    throw new ModelError(`${model.origin.id} does not write text: it has no input 'input_ids' or no output 'logits'.`)
  const caches = model.inputs.filter((t) => isCache(t.name)).map((t) => t.name)
  for (const name of caches)
    if (!model.outputs.includes(presentOf(name)))
      throw new ModelError(`The file takes the cache '${name}', but does not put out '${presentOf(name)}'.`)
  const ids = typeof prompt === 'string' ? [...model.tokenizer.encode(prompt)] : [...prompt]
  if (ids.length === 0) throw new UsageError('The prompt holds no token; give at least one.')
  const promptTokens = ids.length
  const sampler = new Sampler(options, randomStreams(options, 1)[0] as () => number)
  const decoder = model.hasTokenizer ? createDecoder(model.tokenizer, { after: ids, skipSpecial: true }) : undefined
  let text = ''
  let finishReason: OnnxGenerationResult['finishReason'] = 'length'
  let past: Record<string, OnnxValue> = {}
  let start = 0
  const begun = performance.now()
  while (ids.length - promptTokens < limit) {
    throwIfCancelled(options.signal)
    const fresh = ids.slice(start)
    const row = (values: readonly number[]): NDArray => ({
      dtype: 'int64',
      shape: [1, values.length],
      data: BigInt64Array.from(values, BigInt),
    })
    const given = {
      input_ids: row(fresh),
      ...(model.inputs.some((t) => t.name === 'attention_mask') ? { attention_mask: row(ids.map(() => 1)) } : {}),
      ...(model.inputs.some((t) => t.name === 'position_ids') ? { position_ids: row(fresh.map((_, i) => start + i)) } : {}),
      ...past,
    }
    const layout = { rows: [ids], start: [start], width: fresh.length, prompt: [promptTokens] }
    const step = { layout, columns: [fresh.map((_, c) => c)] }
    const { outputs } = await model.pass(model.complete(given), step, {
      outputs: ['logits', ...caches.map(presentOf)],
      signal: options.signal,
    })
    const logits = outputs.logits as NDArray
    if (logits.dtype !== 'float32') throw new ModelError(`The logits of this file are ${logits.dtype}; only float32 can be sampled from.`)
    const width = logits.shape.at(-1) as number
    const last = (logits.data as Float32Array).slice(-width)
    penalise(last, options, ids, promptTokens)
    const token = sampler.choose(last)
    if (caches.length > 0) {
      past = Object.fromEntries(caches.map((name) => [name, outputs[presentOf(name)] as OnnxValue]))
      start = ids.length
    }
    ids.push(token)
    const ended = !options.ignoreEos && model.hasTokenizer && model.tokenizer.eosIds.includes(token)
    const piece = decoder && !ended ? decoder.push(token) : ''
    text += piece
    yield { token, text: piece }
    if (!ended) continue
    finishReason = 'stop'
    break
  }
  text += decoder?.end() ?? ''
  const tokens = ids.slice(promptTokens)
  return { text, tokens, promptTokens, finishReason, tokensPerSecond: (tokens.length * 1000) / (performance.now() - begun) }
}
