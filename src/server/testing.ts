/** @file A server with a tiny random model, for tests. */
import { encodeSafetensors, fromBytes, openSafetensors } from '../models/formats/index.ts'
import type { Tokenizer } from '../models/text/tokenizer.ts'
import { assemble } from '../run/load.ts'
import type { Model } from '../run/model.ts'
import { tinyLlama, tinyTensors } from '../run/testing.ts'
import { type RunningServer, type ServerOptions, startServer } from './index.ts'
import type { RequestOf, RouteName } from './protocol.ts'

const alphabet = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,!?\n'

/** A tokenizer of single characters, with a token that begins every text. */
export const charTokenizer: Tokenizer = {
  vocabSize: alphabet.length + 1,
  bos: 0,
  eosIds: [],
  special: new Map([[0, '<s>']]),
  encode: (text) => [0, ...Array.from(text, (c) => Math.max(0, alphabet.indexOf(c)) + 1)],
  decode: (ids) => ids.map((id) => (id === 0 ? '' : (alphabet[id - 1] ?? ''))).join(''),
  piece: (id) => (id === 0 ? '<s>' : (alphabet[id - 1] ?? `#${id}`)),
  offsets: (text) => ({ ids: charTokenizer.encode(text), offsets: [[0, 0], ...Array.from(text, (_, i) => [i, i + 1] as const)] }),
  idOf: (text) => (text === '<s>' ? 0 : alphabet.includes(text) && text.length === 1 ? alphabet.indexOf(text) + 1 : undefined),
}

/** A tiny random Llama that reads characters. */
export async function tinyReader(): Promise<Model> {
  const store = await openSafetensors(fromBytes(encodeSafetensors(tinyTensors(tinyLlama))))
  return assemble({ id: 'tiny', hash: async () => 'tiny', store, config: tinyLlama, tokenizer: charTokenizer }, { threads: 1 })
}

/** A server at a free port that knows the model `tiny`. */
export async function tinyServer(options: ServerOptions = {}): Promise<RunningServer & { post: Post; get: typeof fetch }> {
  const server = await startServer({ model: 'tiny', port: 0, load: () => tinyReader(), ...options })
  const at = (path: string) => new URL(path, `http://127.0.0.1:${server.port}`).href
  const get = ((path: string, init?: RequestInit) => fetch(at(path), init)) as typeof fetch
  const post: Post = (route, body, init = {}) =>
    fetch(at(`/api/${route}`), {
      method: 'POST',
      body: JSON.stringify(body),
      ...init,
      headers: { 'content-type': 'application/json', ...(init.headers as Record<string, string> | undefined) },
    })
  return { ...server, get, post }
}

/** Posts a body to a route. */
export type Post = <R extends RouteName>(route: R, body: RequestOf<R>, init?: RequestInit) => Promise<Response>

/** The lines of an answer. */
export async function linesOf<T>(response: Response): Promise<T[]> {
  return (await response.text())
    .split('\n')
    .filter((l) => l !== '')
    .map((l) => JSON.parse(l) as T)
}
