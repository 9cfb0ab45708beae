/** @file `actlens sae`: trains sparse autoencoders, measures them, and reads their latents. */
import { UsageError } from '../../base/errors.ts'
import { trainingKinds } from '../../decompose/index.ts'
import { type CommandContext, defineCommand, integer, number, type OptionRow, type Outcome } from '../command.ts'
import { parseText } from '../texts.ts'
import { encodeAction, infoAction, topAction } from './sae-read.ts'
import { evalAction, type SaeCommandOptions, trainAction } from './sae-train.ts'

/** An action: what it does, and the options that it honours. */
interface ActionRow {
  readonly doc: string
  readonly run: (context: CommandContext, model: string, options: SaeCommandOptions) => Promise<Outcome>
  readonly options: readonly string[]
  readonly needs: readonly string[]
  /** It needs no model. */
  readonly alone?: boolean
}

const corpus = ['data', 'field', 'context', 'maxTokens']
const recipe = ['kind', 'width', 'k', 'sparsity', 'decoder', 'rate', 'batch', 'resume', 'sample', 'activations', 'seed']

const actions: Readonly<Record<string, ActionRow>> = {
  train: {
    doc: 'trains one at a site',
    run: trainAction,
    options: [...corpus, ...recipe, 'site', 'out', 'steps', 'text'],
    needs: ['site', 'out'],
  },
  eval: {
    doc: 'figures on activations and in the model',
    run: evalAction,
    options: [...corpus, 'sae', 'site', 'text', 'scale'],
    needs: ['sae'],
  },
  info: { doc: 'what the files say', run: infoAction, options: ['sae', 'scale'], needs: ['sae'], alone: true },
  top: {
    doc: 'contexts, tokens and logit weights of latents',
    run: topAction,
    options: [...corpus, 'sae', 'site', 'text', 'latents', 'top', 'neuronpedia', 'scale'],
    needs: ['sae'],
  },
  encode: {
    doc: 'activations of latents for texts',
    run: encodeAction,
    options: ['sae', 'site', 'text', 'top', 'out', 'scale'],
    needs: ['sae', 'text'],
  },
}

const options: readonly OptionRow[] = [
  { flags: '--sae <source>', doc: 'the autoencoder: a folder, a file in it, or org/name#folder of the hub' },
  { flags: '--site <site>', doc: "where it reads (default: what the autoencoder's file says; required for train)" },
  { flags: '--data <file>', doc: 'documents: a text a line, JSONL, or safetensors with input_ids' },
  { flags: '--field <name>', doc: 'field of JSONL that holds the text (default: text)' },
  { flags: '--text <text>', doc: 'a text, one document', parse: parseText, repeat: true, conflicts: ['data'] },
  {
    flags: '--sample <n>',
    doc: 'train: let the model write a corpus of n tokens, which is kept as corpus.jsonl',
    parse: integer(1),
    conflicts: ['data', 'text'],
  },
  { flags: '--activations <folder>', doc: 'train: activations that capture has written', conflicts: ['data', 'text', 'sample'] },
  { flags: '--context <n>', doc: 'longest row in tokens (default: the context of the model, at most 256)', parse: integer(2) },
  { flags: '--max-tokens <n>', doc: 'train: activations to train on; else positions to look at (default: 16384)', parse: integer(1) },
  { flags: '--kind <kind>', doc: 'train: kind of autoencoder (default: topk)', choices: trainingKinds },
  { flags: '--width <n>', doc: 'train: number of latents (default: 8 times the site)', parse: integer(1) },
  { flags: '--k <n>', doc: 'train: active latents, of kinds that keep k (default: 32)', parse: number },
  { flags: '--sparsity <x>', doc: 'train: coefficient of the sparsity penalty, of the other kinds', parse: number },
  { flags: '--decoder <how>', doc: 'train: rows of length one, or free ones', choices: ['unit', 'free'] },
  { flags: '--rate <x>', doc: 'train: peak learning rate', parse: number },
  { flags: '--batch <n>', doc: 'train: activations in a batch (default: 1024)', parse: integer(1) },
  { flags: '--steps <n>', doc: 'train: steps, instead of --max-tokens', parse: integer(1), conflicts: ['maxTokens'] },
  { flags: '--seed <n>', doc: 'train: seed of first values, order and sampling (default: 0)', parse: integer(0) },
  { flags: '--resume', doc: 'train: go on from the newest checkpoint in --out' },
  { flags: '--scale <x>', doc: 'factor on activations that it was trained on, where its files do not hold it', parse: number },
  { flags: '--latents <n>', doc: 'top: which latents (default: the most active ones)', parse: integer(0), repeat: true },
  { flags: '--top <n>', doc: 'top, encode: how many to show (default: 10)', parse: integer(1) },
  { flags: '--neuronpedia <file>', doc: "top: write Neuronpedia's feature JSON" },
  { flags: '--out <path>', doc: 'train: folder for the autoencoder; encode: safetensors file for the activations' },
]

const flagOf = (name: string) => `--${name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`
const common = ['json', 'quiet', 'threads', 'device', 'precision', 'family', 'debug']

export const command = defineCommand<{ action: string; model?: string }, SaeCommandOptions>({
  name: 'sae',
  summary: `Sparse autoencoders: ${Object.entries(actions)
    .map(([name, { doc }]) => `${name} (${doc})`)
    .join(', ')}.`,
  example: 'sae train embedded --site resid_post.3 --sample 200000 --width 1152 --k 16 --out sae-3',
  arguments: [
    { name: 'ACTION', doc: 'what to do', choices: Object.keys(actions) },
    { name: 'MODEL', doc: "'embedded', a folder, a file, a hub id (all but info)", optional: true },
  ],
  options,
  async run(context, { action, model }, given) {
    const row = actions[action] as ActionRow
    for (const name of Object.keys(given))
      if (!common.includes(name) && !row.options.includes(name))
        throw new UsageError(`'sae ${action}' takes no ${flagOf(name)}; it takes ${row.options.map(flagOf).join(', ')}.`)
    for (const name of row.needs)
      if (given[name as keyof SaeCommandOptions] === undefined) throw new UsageError(`'sae ${action}' needs ${flagOf(name)}.`)
    if (row.alone ? model !== undefined : model === undefined)
      throw new UsageError(row.alone ? `'sae ${action}' takes no MODEL.` : `'sae ${action}' needs a MODEL, such as embedded.`)
    return row.run(context, model ?? '', given)
  },
})
