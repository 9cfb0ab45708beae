/** @file Holding a text to a JSON schema, a grammar or a regular expression, by XGrammar (arXiv 2411.15100): which tokens may come next. */
import { ModelError, UsageError } from '../../base/errors.ts'
import { likeliest } from '../sampling.ts'
import { bytesOfLevelToken, spellInBytes, unfinished, validText } from './bytes.ts'
import type { Constraint, ConstraintMatcher } from './constraint.ts'
import { checkSchema } from './json-schema.ts'
import { grammarOfSchema } from './json-schema-grammar.ts'
import { spellPiece } from './token-bytes.ts'
import type { Tokenizer } from './tokenizer.ts'
import { loadXGrammar, type XGrammar, type XGrammarCompiler, type XGrammarMatcher, type XGrammarValue } from './xgrammar.ts'

/** What tokens there are. */
export interface TokenFacts {
  /** Logits of each step. */
  readonly vocab: number
  /** Tokens at which a text ends. */
  readonly ends: readonly number[]
}

/** A constraint, made ready for a vocabulary. */
export interface CompiledConstraint {
  /** Follows a text from its beginning. @param most tokens that it may have */
  matcher(most: number): Promise<ConstraintMatcher>
  /** Frees it; its matchers stay. */
  dispose(): void
}

/**
 * Compiles a constraint for a tokenizer.
 * @throws UsageError for a schema, grammar or expression that is malformed, or whose keywords would not be honoured; ModelError where no token ends a text.
 */
export async function compileConstraint(constraint: Constraint, tokenizer: Tokenizer, facts: TokenFacts): Promise<CompiledConstraint> {
  const given = Object.keys(constraint)
  if (given.length !== 1)
    throw new UsageError(`A constraint is one of jsonSchema, grammar and regex, not ${given.join(', ') || 'nothing'}.`)
  if (facts.ends.length === 0)
    throw new ModelError('A text can only be held to a constraint where a token ends it, and this tokenizer names none; give endTokens.')
  const library = await loadXGrammar()
  const { compiler, vocabulary } = await prepared(tokenizer, facts, library)
  const grammar = await library.explained(kindOf(constraint), () => grammarOf(constraint, library))
  const compiled = await library.explained(kindOf(constraint), () => compiler.compileGrammar(grammar))
  grammar.dispose()
  return {
    matcher: async (most) =>
      new Matcher(await library.GrammarMatcher.createGrammarMatcher(compiled, [...facts.ends]), vocabulary, facts, most),
    dispose: () => compiled.dispose(),
  }
}

/** A vocabulary that the library has read. */
interface Prepared {
  readonly compiler: XGrammarCompiler
  readonly vocabulary: Vocabulary
}

/** By tokenizer, then by what else matters of the tokens: reading a large vocabulary takes a second. */
const known = new WeakMap<Tokenizer, Map<string, Promise<Prepared>>>()

function prepared(tokenizer: Tokenizer, facts: TokenFacts, library: XGrammar): Promise<Prepared> {
  const own = known.get(tokenizer) ?? new Map<string, Promise<Prepared>>()
  known.set(tokenizer, own)
  const key = `${facts.vocab}:${facts.ends.join()}`
  let made = own.get(key)
  if (!made) {
    made = prepare(tokenizer, facts, library)
    own.set(key, made)
    made.catch(() => own.delete(key))
  }
  return made
}

async function prepare(tokenizer: Tokenizer, facts: TokenFacts, { TokenizerInfo, GrammarCompiler }: XGrammar): Promise<Prepared> {
  const pieces = Array.from({ length: facts.vocab }, (_, id) => spellPiece(tokenizer, id))
  checkJoins(tokenizer, pieces)
  const info = await TokenizerInfo.createTokenizerInfo(pieces, 'byte_level', false, facts.vocab, [...facts.ends])
  return { compiler: await GrammarCompiler.createGrammarCompiler(info, false), vocabulary: vocabularyOf(pieces, facts) }
}

/** Refuses a tokenizer whose tokens are not simply joined: words with spaces put between them. */
function checkJoins(tokenizer: Tokenizer, pieces: readonly string[]): void {
  const plain = pieces.flatMap((p, id) => (/^[a-zA-Z0-9]+$/.test(p) ? [id] : [])).slice(0, 2)
  const text = tokenizer.decode(plain).replace(/^ /, '')
  if (text !== plain.map((id) => pieces[id]).join(''))
    throw new ModelError(
      `This tokenizer writes ${plain.length} tokens as ${JSON.stringify(text)}, with more between them than they say, so its text cannot be held to a constraint.`,
    )
}

const kindOf = (c: Constraint) => ('jsonSchema' in c ? 'JSON schema' : 'grammar' in c ? 'grammar' : 'regular expression')

function grammarOf(c: Constraint, { Grammar }: XGrammar): Promise<XGrammarValue> {
  if ('jsonSchema' in c) {
    checkSchema(c.jsonSchema)
    return Grammar.fromEBNF(grammarOfSchema(c.jsonSchema))
  }
  if ('grammar' in c) {
    checkClasses(c.grammar.replace(/"(?:[^"\\\n]|\\.)*"/g, '""'), 'grammar')
    return Grammar.fromEBNF(c.grammar)
  }
  checkClasses(c.regex, 'regular expression')
  return Grammar.fromStructuralTag({ type: 'structural_tag', format: { type: 'regex', pattern: c.regex } })
}

/** Refuses classes that name characters beyond ASCII: the library matches them by single bytes. What a class excludes may be any. */
function checkClasses(text: string, what: string): void {
  for (const [, body = ''] of text.matchAll(/(?<!\\)(?:\\\\)*\[((?:[^\]\\]|\\.)*)\]/gs)) {
    const beyond = [...body].some((c) => c > '\x7f') || /\\u(?!00[0-7])|\\x[89a-fA-F]|\\U/.test(body)
    if (beyond && !body.startsWith('^'))
      throw new UsageError(
        `The ${what} has the class [${body}] with characters beyond ASCII, which cannot be held to; write them as alternatives: ([a-c]|é).`,
      )
  }
}

/** What a matcher knows of the tokens. */
interface Vocabulary {
  /** The bytes of each token, a character for each. */
  readonly pieces: readonly string[]
  readonly ids: ReadonlyMap<string, number>
  /** Tokens of one character, those that close first. */
  readonly single: readonly number[]
  /** Tokens without text, which no grammar sees: special ones and those beyond the tokenizer. */
  readonly unusable: readonly number[]
  /** Tokens whose bytes are no whole characters, with these bytes. */
  readonly broken: ReadonlyMap<number, Uint8Array>
  /** Those of them that make no text after the bytes of the key, as far as it was asked for. */
  readonly wrong: Map<string, readonly number[]>
}

function vocabularyOf(pieces: readonly string[], { ends }: TokenFacts): Vocabulary {
  const ids = new Map<string, number>()
  const broken = new Map<number, Uint8Array>()
  for (const [id, p] of pieces.entries()) {
    if (!ids.has(p)) ids.set(p, id)
    const bytes = bytesOfLevelToken(p)
    if (validText(bytes) === undefined) broken.set(id, bytes)
  }
  const first = closers.flatMap((c) => ids.get(c) ?? [])
  const single = [...new Set([...first, ...pieces.flatMap((p, id) => (p.length === 1 ? [id] : []))])]
  const unusable = pieces.flatMap((p, id) => (p === '' && !ends.includes(id) ? [id] : []))
  return { pieces, ids, single, unusable, broken, wrong: new Map() }
}

/** Characters with which a text is closed, in the order in which they are tried. */
const closers = ['"', '}', ']', '0', ':', ',', 't', 'r', 'u', 'e', '[', '{', ' ', '-', '.']
/** Tokens after which closing a text is given up. */
const longestClosing = 400
/** Places that a search for a way to close a text looks at, and the tokens that it tries at each. */
const searchPlaces = 300
const searchWidth = 12
/** Tokens among which one is chosen when room is short. */
const keptChoices = 4

/** Follows one text. So that it ends whole within its tokens, what closes it is kept in view once room gets short. */
class Matcher implements ConstraintMatcher {
  ended = false
  private readonly matcher: XGrammarMatcher
  private readonly vocabulary: Vocabulary
  private readonly facts: TokenFacts
  private readonly most: number
  private written = 0
  /** Tokens of a short text that the constraint allows. */
  private shortest = 0
  /** Bytes of a character that is not whole yet. */
  private rest = new Uint8Array(0)

  constructor(matcher: XGrammarMatcher, vocabulary: Vocabulary, facts: TokenFacts, most: number) {
    this.matcher = matcher
    this.vocabulary = vocabulary
    this.facts = facts
    this.most = most
  }

  async mask(logits: Float32Array, room: number): Promise<void> {
    const allowed = await this.matcher.getNextTokenBitmask()
    for (let id = 0; id < logits.length; id++) if (!isSet(allowed, id)) logits[id] = blocked
    for (const id of this.vocabulary.unusable) logits[id] = blocked
    // The library takes some bytes for characters that UTF-8 does not have.
    for (const id of this.wrongAfter(this.rest)) logits[id] = blocked
    // Nothing takes longer to close than it took to open, but for what the constraint asks for in any case.
    if (this.shortest === 0 || room <= this.written + 64) this.keepRoom(logits, room)
  }

  /** Tokens whose bytes make no text after those of an unfinished character. */
  private wrongAfter(rest: Uint8Array): readonly number[] {
    const { wrong, broken } = this.vocabulary
    const key = rest.join()
    let ids = wrong.get(key)
    if (!ids) {
      ids = [...broken].flatMap(([id, bytes]) => (unfinished(rest, bytes) ? [] : [id]))
      wrong.set(key, ids)
    }
    return ids
  }

  /** When room is short, leaves only likely tokens after which the text can still be closed. */
  private keepRoom(logits: Float32Array, room: number): void {
    const path = this.closePath(room)
    if (this.shortest === 0) {
      if (!path)
        throw new UsageError(`No text that the constraint allows was found within ${this.most} tokens; allow more with maxNewTokens.`)
      this.shortest = path.length
    }
    // One token asks for no more than a part of the shortest text.
    if (!path || path.length + this.shortest + 8 < room) return
    const kept = path.length < room ? this.closable(logits, room - 1) : new Set<number>()
    kept.add(path[0] as number)
    for (const id of this.facts.ends) kept.add(id)
    for (let id = 0; id < logits.length; id++) if (!kept.has(id)) logits[id] = blocked
  }

  /** The likeliest tokens after which the text can be closed within `room` tokens. */
  private closable(logits: Float32Array, room: number): Set<number> {
    const kept = new Set<number>()
    for (const id of likeliest(logits, 16)) {
      if (!((logits[id] as number) > blocked) || this.facts.ends.includes(id) || !this.matcher.acceptToken(id)) continue
      if (this.closePath(room)) kept.add(id)
      this.matcher.rollBack(1)
      if (kept.size >= keptChoices) break
    }
    return kept
  }

  /** Tokens that close the text, its end included, within `room` of them; undefined where none were found. */
  private closePath(room: number): number[] | undefined {
    const most = Math.min(room, longestClosing)
    return this.closeStraight(most) ?? this.closeSearching(most)
  }

  /** Closes by always taking the first way. */
  private closeStraight(room: number): number[] | undefined {
    const path: number[] = []
    let end: number | undefined
    while (path.length < room) {
      end = this.end()
      if (end !== undefined) break
      const next = this.ways(1)[0]
      if (next === undefined) break
      this.matcher.acceptToken(next)
      path.push(next)
    }
    if (path.length > 0) this.matcher.rollBack(path.length)
    return end === undefined ? undefined : [...path, end]
  }

  /** Looks for the shortest way, for a limited time. */
  private closeSearching(room: number): number[] | undefined {
    const open: number[][] = [[]]
    for (let n = 0; n < searchPlaces && open.length > 0; n++) {
      const path = open.shift() as number[]
      if (path.length >= room) return undefined
      for (const id of path) this.matcher.acceptToken(id)
      const end = this.end()
      const ways = end === undefined ? this.ways(searchWidth) : []
      if (path.length > 0) this.matcher.rollBack(path.length)
      if (end !== undefined) return [...path, end]
      for (const id of ways) open.push([...path, id])
    }
    return undefined
  }

  /** Whether a token is allowed here. Asking for one costs much less than asking for all. */
  private allows(id: number): boolean {
    if (!this.matcher.acceptToken(id)) return false
    this.matcher.rollBack(1)
    return true
  }

  private end(): number | undefined {
    return this.facts.ends.find((id) => this.allows(id))
  }

  /** Tokens to try for closing, at most so many: the one that must come, or those of one character, closing ones first. */
  private ways(most: number): number[] {
    const forced = this.forced()
    if (forced !== undefined) return [forced]
    const found: number[] = []
    for (const id of this.vocabulary.single) {
      if (this.allows(id)) found.push(id)
      if (found.length >= most) break
    }
    return found
  }

  /** The token that covers most of a text that must come. */
  private forced(): number | undefined {
    const text = spellInBytes(this.matcher.findJumpForwardString())
    for (let n = Math.min(text.length, 16); n > 0; n--) {
      const id = this.vocabulary.ids.get(text.slice(0, n))
      if (id !== undefined && this.allows(id)) return id
    }
    return undefined
  }

  accept(token: number): void {
    if (!this.matcher.acceptToken(token))
      throw new ModelError(`The constraint does not allow the token ${token}, which was chosen all the same.`)
    this.written++
    this.rest = unfinished(this.rest, bytesOfLevelToken(this.vocabulary.pieces[token] ?? '')) ?? new Uint8Array(0)
    this.ended = this.matcher.isTerminated()
  }

  dispose(): void {
    this.matcher.dispose()
  }
}

const blocked = Number.NEGATIVE_INFINITY

const isSet = (bits: Int32Array, id: number) => (((bits[id >> 5] as number) >>> (id & 31)) & 1) === 1
