/** @file JSON schemas as grammars: every text of the grammar is JSON that the schema describes. Expects a schema that was checked. */
import { UsageError } from '../../base/errors.ts'
import { isObject, type Schema } from './json-schema.ts'

/** Most digits of a number: beyond them float64 no longer tells neighbours apart. */
const digits = 15

/** Rules that every schema may use. A blank is allowed after commas and colons; \u never makes half a surrogate pair, so that lengths are those of the text. */
const common = [
  'ws ::= " "?',
  'hex ::= [0-9a-fA-F]',
  'char ::= [^"\\\\\\x00-\\x1f] | "\\\\" ( ["\\\\/bfnrt] | "u" ( [0-9a-cA-Ce-fE-F] hex hex hex | [dD] [0-7] hex hex ) )',
  'string ::= "\\"" char* "\\""',
  `integer ::= "0" | "-"? [1-9] [0-9]{0,${digits - 1}}`,
  `number ::= integer ( "." [0-9]{1,${digits}} )? ( [eE] [+-]? [0-9]{1,2} )?`,
  'boolean ::= "true" | "false"',
  'null ::= "null"',
  'any ::= string | number | boolean | null | array | object',
  'array ::= "[" ( any ( "," ws any )* )? "]"',
  'object ::= "{" ( string ":" ws any ( "," ws string ":" ws any )* )? "}"',
]

/** The grammar of a schema, in EBNF with the rule `root`. @throws UsageError for what no value fulfils. */
export function grammarOfSchema(schema: unknown): string {
  const writer = new SchemaGrammar(schema)
  const root = writer.rule(schema, 'The JSON schema')
  return [`root ::= ${root}`, ...writer.rules, ...common].join('\n')
}

class SchemaGrammar {
  readonly rules: string[] = []
  private readonly whole: unknown
  /** Rules of what was referred to. */
  private readonly named = new Map<string, string>()

  constructor(whole: unknown) {
    this.whole = whole
  }

  /** The name of a rule for a schema. */
  rule(schema: unknown, place: string): string {
    return this.made(this.expression(schema, place))
  }

  private made(expression: string): string {
    if (/^\w+$/.test(expression)) return expression
    const name = this.next()
    this.rules.push(`${name} ::= ${expression}`)
    return name
  }

  private count = 0
  private next(): string {
    return `r${this.count++}`
  }

  private expression(schema: unknown, place: string): string {
    if (!isObject(schema)) return 'any'
    if (typeof schema.$ref === 'string') return this.reference(schema.$ref, place)
    const options = (schema.anyOf ?? schema.oneOf ?? schema.allOf) as readonly unknown[] | undefined
    if (options) return options.map((s, i) => this.rule(s, `${place}[${i}]`)).join(' | ')
    if ('const' in schema || 'enum' in schema) return literals(schema, place)
    const types = schema.type === undefined ? guessedTypes(schema) : ([schema.type].flat() as string[])
    if (types.length === 0) return 'any'
    return types.map((t) => this.made((kinds[t] as Kind)(this, schema, place))).join(' | ')
  }

  private reference(ref: string, place: string): string {
    const known = this.named.get(ref)
    if (known) return known
    const target = pointed(this.whole, ref, place)
    const name = this.next()
    this.named.set(ref, name)
    this.rules.push(`${name} ::= ${this.expression(target, `${place}, ${ref}`)}`)
    return name
  }

  object(schema: Schema, place: string): string {
    const properties = (schema.properties ?? {}) as Schema
    const required = (schema.required ?? []) as readonly string[]
    const extra = schema.additionalProperties ?? true
    const unnamed = required.filter((name) => !Object.hasOwn(properties, name))
    if (unnamed.length > 0 && extra === false)
      throw new UsageError(`${place} requires '${unnamed[0]}', but neither describes nor allows it, so no value fulfils it.`)
    const all = [...Object.entries(properties), ...unnamed.map((name) => [name, extra] as const)]
    if (all.length === 0) {
      if (extra === false) return '"{}"'
      const pair = this.made(`string ":" ws ${this.rule(extra, `${place}, additionalProperties`)}`)
      return `"{" ( ${pair} ( "," ws ${pair} )* )? "}"`
    }
    const pairs = all.map(([name, s]) => ({
      pair: this.made(`${quoted(JSON.stringify(name))} ":" ws ${this.rule(s, `${place}, properties.${name}`)}`),
      needed: required.includes(name),
    }))
    // From the last property on: what may follow when something was written before, and when nothing was.
    let [after, first] = ['', '']
    for (const { pair, needed } of pairs.toReversed()) {
      const own = (before: string) => `${before}${pair}${after === '' ? '' : ` ${after}`}`
      const alternatives = (before: string, skipped: string) =>
        needed ? own(before) : skipped === '' ? `( ${own(before)} )?` : `${own(before)} | ${skipped}`
      const [newAfter, newFirst] = [alternatives('"," ws ', after), alternatives('', first)]
      after = this.made(newAfter)
      first = this.made(newFirst)
    }
    return `"{" ${first} "}"`
  }

  array(schema: Schema, place: string): string {
    const prefix = (schema.prefixItems ?? []) as readonly unknown[]
    const most = (schema.maxItems ?? Number.POSITIVE_INFINITY) as number
    const least = (schema.minItems ?? 0) as number
    const lead = prefix.slice(0, most).map((s, i) => this.rule(s, `${place}, prefixItems[${i}]`))
    const room = schema.items === false ? 0 : most - lead.length
    const rest = Math.max(0, least - lead.length)
    if (rest > room) throw new UsageError(`${place} asks for at least ${least} items, but allows fewer, so no value fulfils it.`)
    if (room === 0) return `"[" ${lead.join(' "," ws ')} "]"`
    const item = this.rule(schema.items ?? true, `${place}, items`)
    if (lead.length > 0) return `"[" ${lead.join(' "," ws ')} ( "," ws ${item} )${times(rest, room)} "]"`
    const list = `${item} ( "," ws ${item} )${times(Math.max(0, rest - 1), room - 1)}`
    return `"[" ${rest > 0 ? list : `( ${list} )?`} "]"`
  }
}

type Kind = (writer: SchemaGrammar, schema: Schema, place: string) => string

const kinds: Readonly<Record<string, Kind>> = {
  object: (w, s, place) => w.object(s, place),
  array: (w, s, place) => w.array(s, place),
  string: (_, s, place) => {
    const [least, most] = [(s.minLength ?? 0) as number, (s.maxLength ?? Number.POSITIVE_INFINITY) as number]
    if (least > most) throw new UsageError(`${place} asks for at least ${least} characters and at most ${most}, so no value fulfils it.`)
    return least === 0 && most === Number.POSITIVE_INFINITY ? 'string' : `"\\"" char${times(least, most)} "\\""`
  },
  number: () => 'number',
  integer: (_, s, place) => integers(s, place),
  boolean: () => 'boolean',
  null: () => 'null',
}

/** Types that keywords without a type speak of: then only they are written. */
function guessedTypes(schema: Schema): string[] {
  const has = (...names: string[]) => names.some((n) => n in schema)
  if (has('properties', 'required', 'additionalProperties')) return ['object']
  if (has('items', 'prefixItems', 'minItems', 'maxItems')) return ['array']
  return has('minLength', 'maxLength') ? ['string'] : []
}

const times = (least: number, most: number) =>
  most === Number.POSITIVE_INFINITY ? (least === 0 ? '*' : `{${least},}`) : most === 0 ? '{0,0}' : `{${least},${most}}`

/** A text as a literal of the grammar. */
const quoted = (text: string) => `"${text.replace(/[\\"]/g, '\\$&')}"`

/** The values of `enum` or `const` that have the type. */
function literals(schema: Schema, place: string): string {
  const types = schema.type === undefined ? undefined : ([schema.type].flat() as string[])
  const values = ('const' in schema ? [schema.const] : (schema.enum as readonly unknown[])).filter(
    (v) => !types || types.some((t) => isOf(v, t)),
  )
  if (values.length === 0) throw new UsageError(`${place} names no value of its type, so no value fulfils it.`)
  return values.map((v) => quoted(JSON.stringify(v))).join(' | ')
}

function isOf(value: unknown, type: string): boolean {
  if (type === 'integer') return Number.isInteger(value)
  const own = value === null ? 'null' : Array.isArray(value) ? 'array' : typeof value
  return own === type
}

/** Whole numbers of a range. */
function integers(s: Schema, place: string): string {
  const limit = 10 ** digits - 1
  const bound = (values: readonly unknown[], otherwise: number, pick: (...v: number[]) => number) => {
    const given = values.filter((v): v is number => typeof v === 'number')
    return given.length > 0 ? pick(...given) : otherwise
  }
  const above = typeof s.exclusiveMinimum === 'number' ? Math.floor(s.exclusiveMinimum) + 1 : undefined
  const below = typeof s.exclusiveMaximum === 'number' ? Math.ceil(s.exclusiveMaximum) - 1 : undefined
  const low = Math.ceil(bound([s.minimum, above], -limit, Math.max))
  const high = Math.floor(bound([s.maximum, below], limit, Math.min))
  if (low === -limit && high === limit) return 'integer'
  if (low > high) throw new UsageError(`${place} asks for a whole number from ${low} to ${high}, so no value fulfils it.`)
  if (Math.max(Math.abs(low), Math.abs(high)) > limit)
    throw new UsageError(`${place} limits integers beyond ±${limit}, which JSON numbers do not hold exactly.`)
  return [...(low < 0 ? [`"-" ( ${spans(Math.max(1, -high), -low)} )`] : []), ...(high >= 0 ? [spans(Math.max(0, low), high)] : [])].join(
    ' | ',
  )
}

/** Numbers from `low` to `high`, neither negative, by their lengths. */
function spans(low: number, high: number): string {
  const parts: string[] = []
  for (let from = low; from <= high; ) {
    const to = Math.min(high, 10 ** String(from).length - 1)
    parts.push(span(String(from), String(to)))
    from = to + 1
  }
  return parts.join(' | ')
}

/** Numbers of one length. */
function span(low: string, high: string): string {
  if (low === '') return ''
  const n = low.length - 1
  const [a, b] = [Number(low[0]), Number(high[0])]
  const [restLow, restHigh] = [low.slice(1), high.slice(1)]
  const [nines, zeros] = ['9'.repeat(n), '0'.repeat(n)]
  const of = (from: number, to: number, rest: string) => `${from === to ? `"${from}"` : `[${from}-${to}]`}${rest === '' ? '' : ` ${rest}`}`
  const whole = n === 0 ? '' : `[0-9]{${n},${n}}`
  if (restLow === zeros && restHigh === nines) return of(a, b, whole)
  if (a === b) return of(a, a, `( ${span(restLow, restHigh)} )`)
  const [first, last] = [restLow === zeros ? a : a + 1, restHigh === nines ? b : b - 1]
  return [
    ...(first > a ? [of(a, a, `( ${span(restLow, nines)} )`)] : []),
    ...(first <= last ? [of(first, last, whole)] : []),
    ...(last < b ? [of(b, b, `( ${span(zeros, restHigh)} )`)] : []),
  ].join(' | ')
}

/** What a reference within the schema means. */
function pointed(whole: unknown, ref: string, place: string): unknown {
  if (!ref.startsWith('#')) throw new UsageError(`${place} refers to '${ref}', which is not within the schema; put it under $defs.`)
  let value = whole
  for (const part of ref.slice(1).split('/').slice(1)) {
    const key = decodeURIComponent(part).replace(/~1/g, '/').replace(/~0/g, '~')
    value = isObject(value) || Array.isArray(value) ? (value as Schema)[key] : undefined
  }
  if (value === undefined) throw new UsageError(`${place} refers to '${ref}', which the schema does not have.`)
  return value
}
