/** @file `actlens sae info`, `top` and `encode`. */
import { UsageError } from '../../base/errors.ts'
import {
  encodeAt,
  encodeNeuronpediaFeatures,
  type LatentContext,
  latentLogits,
  latentSummaries,
  liveRows,
  type Sae,
  saeMetrics,
  saveNeuronpediaFeatures,
} from '../../decompose/index.ts'
import { writeSafetensors } from '../../models/formats/index.ts'
import type { Model } from '../../run/index.ts'
import type { CommandContext, Outcome } from '../command.ts'
import { withModel } from '../model.ts'
import { checkOutput } from '../output.ts'
import { quoted, short, table } from '../table.ts'
import { encodeTexts } from '../texts.ts'
import { corpusOf, given, openSae, type SaeCommandOptions } from './sae-train.ts'

export async function infoAction(context: CommandContext, _: string, options: SaeCommandOptions): Promise<Outcome> {
  await using sae = await openSae(context, options)
  const { tensors, warnings, metadata, ...facts } = sae.weights
  const shapes = Object.fromEntries(Object.entries(tensors).map(([name, t]) => [name, t.shape]))
  const told = Object.entries(facts).filter(([, v]) => v !== undefined)
  return {
    json: { ...facts, tensors: shapes, metadata, warnings },
    text: table(
      ['fact', 'value'],
      [...told.map(([n, v]) => [n, String(v)]), ...Object.entries(shapes).map(([n, s]) => [n, `[${s.join(', ')}]`])],
    ),
  }
}

/** Positions that are read where nobody says how many. */
const defaultTokens = 16_384

const pieceOf = (model: Model) => (id: number) => (model.hasTokenizer ? model.tokenizer.piece(id) : String(id))

export async function topAction(context: CommandContext, name: string, options: SaeCommandOptions): Promise<Outcome> {
  const data = corpusOf(options)
  if (options.neuronpedia !== undefined) await checkOutput(options.neuronpedia)
  await using sae = await openSae(context, options)
  return withModel(context, name, {}, async ({ model }) => {
    const { site } = sae.site(model, options.site)
    const work = { signal: context.io.signal, onProgress: context.onProgress }
    const maxTokens = options.maxTokens ?? defaultTokens
    const top = options.top ?? 10
    const latents = options.latents ?? (await mostActive(model, sae, site, options, maxTokens, top))
    const summaries = await latentSummaries(model, sae, {
      data,
      latents,
      site,
      maxTokens,
      ...given(options, 'context'),
      keep: top,
      ...work,
    })
    const writes = sae.dOut === model.spec.dModel && !sae.weights.transcoder
    const logits = writes ? await latentLogits(model, sae, latents, top) : []
    if (options.neuronpedia !== undefined) {
      if (!writes)
        throw new UsageError(
          'This autoencoder does not write into the residual stream, so its features have no logit weights to be written.',
        )
      await saveNeuronpediaFeatures(options.neuronpedia, encodeNeuronpediaFeatures(model, sae, summaries, logits, { site }))
    }
    const piece = pieceOf(model)
    const named = (list: readonly { token: number; weight: number }[]) => list.map((t) => ({ ...t, piece: piece(t.token) }))
    return {
      json: {
        model: model.origin.id,
        site,
        latents: summaries.map((s, i) => ({
          ...s,
          tokens: s.tokens.map((t) => ({ ...t, piece: piece(t.token) })),
          ...(logits[i] ? { promoted: named(logits[i].promoted), suppressed: named(logits[i].suppressed) } : {}),
        })),
      },
      text: summaries
        .map((s, i) => {
          const share = `${((100 * s.active) / Math.max(1, s.positions)).toFixed(2)} %`
          const words = (list: readonly { token: number }[]) =>
            list
              .slice(0, 8)
              .map((t) => quoted(piece(t.token)))
              .join(' ')
          const lines = s.contexts.slice(0, 5).map((c) => `  ${short(c.value).padStart(7)}  ${shown(c, piece)}`)
          const logit = logits[i] ? `  promotes ${words(logits[i].promoted)}\n` : ''
          return `latent ${s.latent}: active at ${share} of positions, at most ${short(s.max)}\n  tokens   ${words(s.tokens)}\n${logit}${lines.join('\n')}\n`
        })
        .join('\n'),
    }
  })
}

/** The latents that are active most often, in falling order, those that are active nearly everywhere left out. */
async function mostActive(
  model: Model,
  sae: Sae,
  site: string,
  options: SaeCommandOptions,
  tokens: number,
  top: number,
): Promise<number[]> {
  const rows = await liveRows(model, { data: corpusOf(options), site, seed: 0, ...given(options, 'context') })
  const { density } = await saeMetrics(sae, rows, { tokens: Math.min(tokens, 4096) })
  const found = Array.from(density, (d, i) => ({ d, i }))
    .filter(({ d }) => d > 0 && d < 0.2)
    .sort((a, b) => b.d - a.d)
    .slice(0, top)
    .map(({ i }) => i)
  if (found.length === 0) throw new UsageError('No latent is active on these texts; give other texts, or name latents by --latents.')
  return found
}

/** A context as one line, the strongest token in brackets. */
function shown({ tokens, at }: LatentContext, piece: (id: number) => string): string {
  const from = Math.max(0, at - 8)
  const text = tokens.slice(from, at + 5).map((t, i) => (i + from === at ? `«${piece(t)}»` : piece(t)))
  return text.join('').replace(/[\n\r\t]/g, ' ')
}

export async function encodeAction(context: CommandContext, name: string, options: SaeCommandOptions): Promise<Outcome> {
  if (options.out !== undefined) await checkOutput(options.out)
  await using sae = await openSae(context, options)
  return withModel(context, name, {}, async ({ model }) => {
    const { site } = sae.site(model, options.site)
    const rows = encodeTexts(model, options.text ?? [], '--text')
    const { acts, tokens } = await encodeAt(model, sae, { rows }, { site, signal: context.io.signal })
    if (options.out !== undefined) await writeSafetensors(options.out, { [`${site}.latents`]: acts })
    const piece = pieceOf(model)
    const top = options.top ?? 10
    const width = acts.shape[1] as number
    const places = tokens.map((row, b) =>
      row.map((token, c) => {
        const own = acts.data.subarray((b * width + c) * sae.dSae, (b * width + c + 1) * sae.dSae)
        const active = Array.from(own, (value, latent) => ({ latent, value })).filter(({ value }) => value !== 0)
        active.sort((x, y) => Math.abs(y.value) - Math.abs(x.value))
        return { token, piece: piece(token), active: active.length, latents: active.slice(0, top) }
      }),
    )
    return {
      json: { model: model.origin.id, site, rows: places, ...(options.out === undefined ? {} : { out: options.out }) },
      text: places
        .map((row) =>
          table(
            ['token', 'active', 'strongest latents'],
            row.map((p) => [
              quoted(p.piece),
              String(p.active),
              p.latents
                .slice(0, 5)
                .map((l) => `${l.latent}: ${short(l.value)}`)
                .join('  '),
            ]),
          ),
        )
        .join('\n'),
    }
  })
}
