/** @file Holding a text to a JSON schema, a grammar or a regular expression, by XGrammar (arXiv 2411.15100): which tokens may come next. */
import { ModelError, UsageError } from '../../base/errors.ts'
import type { Constraint, ConstraintMatcher } from './constraint.ts'
import { checkSchema } from './json-schema.ts'
import { spellPiece } from './token-bytes.ts'
import type { Tokenizer } from './tokenizer.ts'
import { loadXGrammar, type XGrammar, type XGrammarMatcher } from './xgrammar.ts'

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
  const pieces = Array.from({ length: facts.vocab }, (_, id) => spellPiece(tokenizer, id))
  checkJoins(tokenizer, pieces)
  const library = await loadXGrammar()
  const { TokenizerInfo, GrammarCompiler, GrammarMatcher } = library
  const info = await TokenizerInfo.createTokenizerInfo(pieces, 'byte_level', false, facts.vocab, [...facts.ends])
  const compiler = await GrammarCompiler.createGrammarCompiler(info, false)
  const grammar = await library.explained(kindOf(constraint), () => grammarOf(constraint, library))
  const compiled = await library.explained(kindOf(constraint), () => compiler.compileGrammar(grammar))
  const unusable = unusableTokens(pieces, facts)
  return {
    matcher: async (most) => {
      const matcher = await GrammarMatcher.createGrammarMatcher(compiled, [...facts.ends])
      return new Matcher(matcher, pieces, facts, unusable, most)
    },
  }
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

function grammarOf(c: Constraint, { Grammar }: XGrammar): Promise<unknown> {
  if ('jsonSchema' in c) {
    checkSchema(c.jsonSchema)
    // At most one blank between parts: unbounded ones let a model fill its whole answer with them.
    return Grammar.fromJSONSchema(JSON.stringify(c.jsonSchema), true, undefined, undefined, true, 1)
  }
  if ('grammar' in c) return Grammar.fromEBNF(c.grammar)
  return Grammar.fromStructuralTag({ type: 'structural_tag', format: { type: 'regex', pattern: c.regex } })
}

/** Tokens without text, which no grammar sees: special ones and those beyond the tokenizer. */
function unusableTokens(pieces: readonly string[], { ends }: TokenFacts): readonly number[] {
  return pieces.flatMap((p, id) => (p === '' && !ends.includes(id) ? [id] : []))
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
  private readonly pieces: readonly string[]
  private readonly facts: TokenFacts
  private readonly unusable: readonly number[]
  /** Tokens of one character, those that close first. */
  private readonly single: readonly number[]
  private readonly most: number
  private written = 0
  /** Tokens of a short text that the constraint allows. */
  private shortest = 0

  constructor(matcher: XGrammarMatcher, pieces: readonly string[], facts: TokenFacts, unusable: readonly number[], most: number) {
    this.matcher = matcher
    this.pieces = pieces
    this.facts = facts
    this.unusable = unusable
    this.most = most
    const first = closers.map((c) => pieces.indexOf(c)).filter((id) => id >= 0)
    this.single = [...new Set([...first, ...pieces.flatMap((p, id) => (p.length === 1 ? [id] : []))])]
  }

  async mask(logits: Float32Array, room: number): Promise<void> {
    const allowed = await this.matcher.getNextTokenBitmask()
    for (let id = 0; id < logits.length; id++) if (!isSet(allowed, id)) logits[id] = blocked
    for (const id of this.unusable) if (id < logits.length) logits[id] = blocked
    // Nothing takes longer to close than it took to open, but for what the constraint asks for in any case.
    if (this.shortest === 0 || room <= this.written + 64) await this.keepRoom(logits, room)
  }

  /** When room is short, leaves only likely tokens after which the text can still be closed. */
  private async keepRoom(logits: Float32Array, room: number): Promise<void> {
    const path = await this.closePath(room)
    if (this.shortest === 0) {
      if (!path)
        throw new UsageError(`No text that the constraint allows was found within ${this.most} tokens; allow more with maxNewTokens.`)
      this.shortest = path.length
    }
    // One token asks for no more than a part of the shortest text.
    if (!path || path.length + this.shortest + 8 < room) return
    const kept = path.length < room ? await this.closable(logits, room - 1) : new Set<number>()
    kept.add(path[0] as number)
    for (const id of this.facts.ends) kept.add(id)
    for (let id = 0; id < logits.length; id++) if (!kept.has(id)) logits[id] = blocked
  }

  /** The likeliest tokens after which the text can be closed within `room` tokens. */
  private async closable(logits: Float32Array, room: number): Promise<Set<number>> {
    const order = Array.from(logits.keys())
      .filter((id) => (logits[id] as number) > blocked && !this.facts.ends.includes(id))
      .sort((a, b) => (logits[b] as number) - (logits[a] as number))
      .slice(0, 16)
    const kept = new Set<number>()
    for (const id of order) {
      if (!this.matcher.acceptToken(id)) continue
      if (await this.closePath(room)) kept.add(id)
      this.matcher.rollBack(1)
      if (kept.size >= keptChoices) break
    }
    return kept
  }

  /** Tokens that close the text, its end included, within `room` of them; undefined where none were found. */
  private async closePath(room: number): Promise<number[] | undefined> {
    const most = Math.min(room, longestClosing)
    return (await this.closeStraight(most)) ?? this.closeSearching(most)
  }

  /** Closes by always taking the first way. */
  private async closeStraight(room: number): Promise<number[] | undefined> {
    const path: number[] = []
    let end: number | undefined
    while (path.length < room) {
      const allowed = await this.matcher.getNextTokenBitmask()
      end = this.facts.ends.find((id) => isSet(allowed, id))
      if (end !== undefined) break
      const next = this.ways(allowed)[0]
      if (next === undefined || !this.matcher.acceptToken(next)) break
      path.push(next)
    }
    if (path.length > 0) this.matcher.rollBack(path.length)
    return end === undefined ? undefined : [...path, end]
  }

  /** Looks for the shortest way, for a limited time. */
  private async closeSearching(room: number): Promise<number[] | undefined> {
    const open: number[][] = [[]]
    for (let n = 0; n < searchPlaces && open.length > 0; n++) {
      const path = open.shift() as number[]
      if (path.length >= room) return undefined
      for (const id of path) this.matcher.acceptToken(id)
      const allowed = await this.matcher.getNextTokenBitmask()
      if (path.length > 0) this.matcher.rollBack(path.length)
      const end = this.facts.ends.find((id) => isSet(allowed, id))
      if (end !== undefined) return [...path, end]
      for (const id of this.ways(allowed)) open.push([...path, id])
    }
    return undefined
  }

  /** Tokens to try for closing: the one that must come, or those of one character, closing ones first. */
  private ways(allowed: Int32Array): number[] {
    const forced = this.forced(allowed)
    if (forced !== undefined) return [forced]
    const single = this.single.filter((id) => isSet(allowed, id)).slice(0, searchWidth)
    if (single.length > 0) return single
    const id = this.pieces.findIndex((p, i) => p !== '' && isSet(allowed, i))
    return id < 0 ? [] : [id]
  }

  /** The token that covers most of a text that must come. */
  private forced(allowed: Int32Array): number | undefined {
    const text = this.matcher.findJumpForwardString()
    if (text === '') return undefined
    for (let n = Math.min(text.length, 16); n > 0; n--) {
      const id = this.pieces.indexOf(text.slice(0, n))
      if (id >= 0 && isSet(allowed, id)) return id
    }
    return undefined
  }

  accept(token: number): void {
    if (!this.matcher.acceptToken(token))
      throw new ModelError(`The constraint does not allow the token ${token}, which was chosen all the same.`)
    this.written++
    this.ended = this.matcher.isTerminated()
  }
}

const blocked = Number.NEGATIVE_INFINITY

const isSet = (bits: Int32Array, id: number) => (((bits[id >> 5] as number) >>> (id & 31)) & 1) === 1
