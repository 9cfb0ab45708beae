/** @file The library XGrammar, loaded when a constraint is asked for. Node only. */
import { ModelError, UsageError } from '../../base/errors.ts'

/** A value in the library's memory. */
export interface XGrammarValue {
  dispose(): void
}

/** Makes grammars ready for a vocabulary. */
export interface XGrammarCompiler extends XGrammarValue {
  compileGrammar(grammar: XGrammarValue): Promise<XGrammarValue>
}

/** Follows a text through a grammar. */
export interface XGrammarMatcher extends XGrammarValue {
  acceptToken(id: number): boolean
  getNextTokenBitmask(): Promise<Int32Array>
  isTerminated(): boolean
  rollBack(count: number): void
  findJumpForwardString(): string
}

interface Library {
  readonly Grammar: {
    fromEBNF(grammar: string): Promise<XGrammarValue>
    fromStructuralTag(tag: unknown): Promise<XGrammarValue>
  }
  readonly TokenizerInfo: {
    createTokenizerInfo(vocab: string[], kind: string, prependSpace: boolean, size: number, stops: number[]): Promise<XGrammarValue>
  }
  readonly GrammarCompiler: {
    createGrammarCompiler(info: XGrammarValue, cached: boolean): Promise<XGrammarCompiler>
  }
  readonly GrammarMatcher: { createGrammarMatcher(compiled: XGrammarValue, stops: number[]): Promise<XGrammarMatcher> }
}

/** The library, and its complaints as errors. */
export interface XGrammar extends Library {
  /** Does a piece of work; what the library prints when it gives up becomes the error. @param what the thing that may be wrong */
  explained<T>(what: string, work: () => Promise<T>): Promise<T>
}

let loaded: Promise<XGrammar> | undefined

/** Loads the library, once. */
export function loadXGrammar(): Promise<XGrammar> {
  loaded ??= load()
  return loaded
}

async function load(): Promise<XGrammar> {
  if (typeof process === 'undefined' || !process.versions?.node)
    throw new ModelError('Texts can be held to a grammar in Node only; leave the constraint out, or generate on the server.')
  const { module: node, fsPromises } = await import('../../base/node.ts')
  const { createRequire, Module } = node
  const { readFile } = fsPromises
  const path = createRequire(import.meta.url).resolve('@mlc-ai/web-xgrammar')
  // The package is a script that calls itself a module, so Node must be told; and it prints its errors, which are wanted as errors.
  const lines: string[] = []
  const script = new Module(`${path}.cjs`) as unknown as { exports: Library; console: object; _compile(source: string, path: string): void }
  const keep = (...parts: unknown[]) => void lines.push(parts.join(' '))
  script.console = { log: keep, warn: keep, error: keep, info: keep, debug: keep }
  script._compile(`var console = module.console;${await readFile(path, 'utf8')}`, `${path}.cjs`)
  return {
    ...script.exports,
    explained: async (what, work) => {
      lines.length = 0
      try {
        const result = await work()
        const warning = lines.find((l) => l.includes('[WARNING]'))
        if (warning) throw new UsageError(`The ${what} cannot be held to as a whole: ${plain(warning)}.`)
        return result
      } catch (error) {
        if (error instanceof UsageError) throw error
        const why = plain(lines.find((l) => l.includes('[FATAL]')) ?? String(error))
        throw new UsageError(`The ${what} is not one that can be used: ${why}.`, { cause: error })
      }
    },
  }
}

/** A line of the library without the place in its source. */
const plain = (line: string) => line.replace(/^.*?\.cc:\d+: /s, '').replace(/\.?\s*$/s, '')
