/** @file Which JSON schemas a text can be held to: all that their keywords ask for must be honoured, so others are refused. */
import { listed, UsageError } from '../../base/errors.ts'

/** Keywords that say nothing of the value. */
const notes = ['$schema', '$id', '$comment', 'title', 'description', 'default', 'examples', 'deprecated', 'readOnly', 'writeOnly']

/** What follows a keyword. */
type Kind = 'any' | 'schema' | 'list' | 'map'

/** Keywords whose meaning the grammar has, and where schemas stand in them. */
const keywords: Readonly<Record<string, Kind>> = {
  ...Object.fromEntries(notes.map((k) => [k, 'any' as const])),
  $defs: 'map',
  definitions: 'map',
  $ref: 'any',
  type: 'any',
  enum: 'any',
  const: 'any',
  anyOf: 'list',
  oneOf: 'list',
  allOf: 'list',
  properties: 'map',
  required: 'any',
  additionalProperties: 'schema',
  items: 'schema',
  prefixItems: 'list',
  minItems: 'any',
  maxItems: 'any',
  minLength: 'any',
  maxLength: 'any',
  minimum: 'any',
  maximum: 'any',
  exclusiveMinimum: 'any',
  exclusiveMaximum: 'any',
}

const types = ['object', 'array', 'string', 'number', 'integer', 'boolean', 'null']

/** A schema that is an object. */
export type Schema = Readonly<Record<string, unknown>>

/** Whether a value is an object of JSON. */
export const isObject = (value: unknown): value is Schema => typeof value === 'object' && value !== null && !Array.isArray(value)

/**
 * Refuses a schema that a grammar would only honour in part.
 * @throws UsageError that names the place and the keyword.
 */
export function checkSchema(schema: unknown, place = 'The JSON schema'): void {
  if (typeof schema === 'boolean') {
    if (!schema) throw new UsageError(`${place} is false, which no value fulfils.`)
    return
  }
  if (!isObject(schema)) throw new UsageError(`${place} must be an object, not ${JSON.stringify(schema)}.`)
  for (const [key, value] of Object.entries(schema)) {
    const kind = Object.hasOwn(keywords, key) ? keywords[key] : undefined
    if (!kind)
      throw new UsageError(
        `${place} has the keyword '${key}', which a grammar cannot promise; leave it out and check it on the result. Known are ${listed(Object.keys(keywords), 40)}.`,
      )
    const inner = `${place}, ${key}`
    // Absent and forbidden items are said by false.
    if (kind === 'schema' && typeof value !== 'boolean') checkSchema(value, inner)
    if (kind === 'list') for (const [i, s] of listOf(value, inner).entries()) checkSchema(s, `${inner}[${i}]`)
    if (kind === 'map') for (const [name, s] of mapOf(value, inner)) checkSchema(s, `${inner}.${name}`)
  }
  const named = [schema.type ?? []].flat()
  const wrong = named.find((t) => !types.includes(t as string))
  if (wrong !== undefined) throw new UsageError(`${place} has the type ${JSON.stringify(wrong)}; types are ${types.join(', ')}.`)
  checkCombinations(schema, named, place)
}

/** Keywords that are honoured in some company only. */
function checkCombinations(schema: Schema, named: readonly unknown[], place: string): void {
  const ranges = ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'].filter((k) => k in schema)
  if (ranges.length > 0 && !(named.length === 1 && named[0] === 'integer'))
    throw new UsageError(`${place} limits numbers by ${ranges.join(', ')}, which is honoured for the type "integer" alone.`)
  if (Array.isArray(schema.allOf) && schema.allOf.length > 1)
    throw new UsageError(`${place} has an 'allOf' of several schemas, which a grammar cannot join; write them as one.`)
  const alone = ['anyOf', 'oneOf', 'allOf', '$ref', 'enum', 'const'].filter((k) => k in schema)
  const others = Object.keys(schema).filter(
    (k) => !notes.includes(k) && !['$defs', 'definitions', 'type'].includes(k) && !alone.includes(k),
  )
  if (alone.length > 1 || (alone.length === 1 && others.length > 0))
    throw new UsageError(
      `${place} has '${alone.join("' and '")}'${others.length > 0 ? ` beside ${others.join(', ')}` : ''}, of which a grammar honours only one; nest them.`,
    )
  if (alone.length === 1 && named.length > 0 && alone[0] !== 'enum' && alone[0] !== 'const')
    throw new UsageError(`${place} has '${alone[0]}' beside 'type', of which a grammar honours only one; put the type into it.`)
  if (Array.isArray(schema.oneOf) && !areApart(schema.oneOf))
    throw new UsageError(`${place} has a 'oneOf' whose schemas a value might fulfil together; use anyOf, or give each its own type.`)
}

/** Whether no value can fulfil two of the schemas, as far as their types say. */
function areApart(schemas: readonly unknown[]): boolean {
  const seen = schemas.flatMap((s) => (isObject(s) && s.type !== undefined ? [s.type].flat() : ['any']))
  const numbers = seen.includes('number') && seen.includes('integer')
  return schemas.length <= 1 || (!numbers && !seen.includes('any') && new Set(seen).size === seen.length)
}

function listOf(value: unknown, place: string): readonly unknown[] {
  if (!Array.isArray(value) || value.length === 0) throw new UsageError(`${place} must be a list of schemas.`)
  return value
}

function mapOf(value: unknown, place: string): readonly (readonly [string, unknown])[] {
  if (!isObject(value)) throw new UsageError(`${place} must be an object of schemas.`)
  return Object.entries(value)
}
