/**
 * @file How byte-level vocabularies in GGUF files split text before merging: a GGUF file only names the way (`tokenizer.ggml.pre`),
 * the patterns are those of the models' own tokenizer.json files. Source of the names: llama.cpp, src/llama-vocab.cpp.
 */

import { listed, ModelError, nearest } from '../../base/errors.ts'
import { gpt2Pattern } from './hf-repairs.ts'

/** A way to split text, and what else the name implies. */
export interface PreTokenizer {
  /** Patterns, applied one after the other; each match stands alone. */
  readonly patterns: readonly string[]
  /** A word that is a token is taken whole, whatever the merges say. */
  readonly ignoreMerges?: boolean
  /** Characters are composed first (which llama.cpp leaves out, but the models were trained with). */
  readonly nfc?: boolean
  /** BOS is added where the file does not say. */
  readonly addBos?: boolean
}

const contraction = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
const tail = '\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+'
const words = (digits: string, letter = '\\p{L}', used = '\\p{L}\\p{N}'): string =>
  `${contraction}|[^\\r\\n\\p{L}\\p{N}]?${letter}+|${digits}| ?[^\\s${used}]+[\\r\\n]*|${tail}`
const upper = '[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]'
const lower = '[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]'
/** Words that also split where small letters turn into capitals; `ending` may follow a word. */
const cased = (digits: string, ending: string): string =>
  `[^\\r\\n\\p{L}\\p{N}]?${upper}*${lower}+${ending}|[^\\r\\n\\p{L}\\p{N}]?${upper}+${lower}*${ending}|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${tail}`

const gpt2: PreTokenizer = { patterns: [gpt2Pattern] }
const singleDigits: PreTokenizer = { patterns: ['\\p{N}', gpt2Pattern] }
const llama3: PreTokenizer = { patterns: [words('\\p{N}{1,3}')], ignoreMerges: true, addBos: true }
const qwen2: PreTokenizer = { patterns: [words('\\p{N}')] }
const threeDigits: PreTokenizer = { patterns: [words('\\p{N}{1,3}')] }
const gpt4o: PreTokenizer = { patterns: [cased('\\p{N}{1,3}', `${contraction}?`)] }
const bloom = ' ?[^(\\s|.,!?…。，、।۔،)]+'
const deepseek3: PreTokenizer = {
  patterns: [
    '\\p{N}{1,3}',
    '[一-龥\u3040-ゟ゠-ヿ]+',
    '[!"#$%&\'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+',
  ],
}
const bailing: PreTokenizer = {
  patterns: [`'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+`],
}

/** Ways and the names that GGUF files have for them. */
const ways: readonly (readonly [PreTokenizer, string])[] = [
  [
    gpt2,
    'gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum modern-bert exaone4 jina-es jina-de jina-v2-es jina-v2-de',
  ],
  [gpt2, 'jina-v1-en jina-v2-code roberta-bpe'],
  [singleDigits, 'smollm starcoder refact command-r codeshell exaone minerva-7b mellum2'],
  [llama3, 'llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano'],
  [threeDigits, 'dbrx smaug-bpe glm4 chatglm-bpe'],
  [{ ...qwen2, nfc: true }, 'qwen2 deepseek-r1-qwen'],
  [qwen2, 'kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2'],
  [{ patterns: [words('\\p{N}', '[\\p{L}\\p{M}]', '\\p{L}\\p{M}\\p{N}')], nfc: true }, 'qwen35'],
  [gpt4o, 'gpt-4o llama4 kanana2 minimax-m2'],
  [{ patterns: [cased('\\p{N}', '')], ignoreMerges: true, addBos: true }, 'tekken'],
  [deepseek3, 'deepseek-v3 hunyuan-dense joyai-llm'],
  [{ patterns: ['[\\r\\n]', '\\s?\\p{L}+', '\\s?\\p{P}+', '[一-龥ࠀ-一가-\uD7FF]+', '\\p{N}'] }, 'deepseek-coder'],
  [{ patterns: ['[\\p{P}$+<=>^~|`]+', gpt2Pattern, '[0-9][0-9][0-9]'] }, 'falcon'],
  [{ patterns: [bloom] }, 'bloom poro-chat gpt3-finnish'],
  [{ patterns: [bloom, '\\p{N}'] }, 'viking'],
  [bailing, 'bailingmoe bailingmoe2 llada-moe'],
  [{ patterns: [words('\\p{N}').replace('[^\\s\\p{L}\\p{N}]+[\\r\\n]*', '[^\\s\\p{L}\\p{N}\\r\\n]+')] }, 'seed-coder'],
]

const byName: ReadonlyMap<string, PreTokenizer> = new Map(
  ways.flatMap(([way, names]) => names.split(' ').map((name) => [name, way] as const)),
)

/** Files from before the name existed, by architecture; for others the way is not known. */
const beforeNames: Readonly<Record<string, string>> = {
  gpt2: 'gpt-2',
  gptneox: 'gpt-2',
  phi2: 'phi-2',
  mpt: 'mpt',
  starcoder: 'starcoder',
  refact: 'refact',
  bloom: 'bloom',
  falcon: 'falcon',
  qwen2: 'qwen2',
}

/** The way that a file names, or the one that its architecture always has; a {@link ModelError} where it is not known. */
export function preTokenizerOf(name: string | undefined, architecture: string | undefined): PreTokenizer {
  const known = name === undefined || name === 'default' ? beforeNames[architecture ?? ''] : name
  if (known === undefined) {
    throw new ModelError(
      `The GGUF file does not say how its tokenizer splits text (tokenizer.ggml.pre), and for the architecture '${architecture ?? 'unknown'}' it cannot be told: convert the model again with a newer llama.cpp, or use its Hugging Face folder.`,
    )
  }
  const way = byName.get(known)
  if (way) return way
  const near = nearest(known, byName.keys())
  throw new ModelError(
    `The GGUF file's way to split text, '${known}', is not known here${near ? ` (nearest: '${near}')` : ''}: use the model's Hugging Face folder instead. Known are ${listed(byName.keys(), 60)}.`,
  )
}
