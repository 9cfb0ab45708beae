/** @file Reading `config.json` without trusting it. */
import { ModelError, nearest } from '../base/errors.ts'

/** The fields of a `config.json`. */
export type Config = Readonly<Record<string, unknown>>

/** Typed look-ups that name the field that is missing or wrong. */
export class ConfigReader {
  readonly config: Config
  private readonly where: string

  constructor(config: Config, where = 'config.json') {
    this.config = config
    this.where = where
  }

  /** A positive integer; the first of several names that is there. */
  integer(...names: string[]): number {
    const value = this.optionalInteger(...names)
    if (value === undefined) throw this.missing(names, 'an integer')
    return value
  }

  /** A positive integer, or undefined when none of the names is there. */
  optionalInteger(...names: string[]): number | undefined {
    for (const name of names) {
      const value = this.config[name]
      if (value === undefined || value === null) continue
      if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > 2 ** 31)
        throw new ModelError(`'${name}' in ${this.where} must be a positive integer, not ${JSON.stringify(value)}.`)
      return value
    }
    return undefined
  }

  /** A number, with a default. */
  number(name: string, otherwise?: number): number {
    const value = this.config[name] ?? otherwise
    if (typeof value !== 'number' || !Number.isFinite(value)) throw this.missing([name], 'a number')
    return value
  }

  /** A number, or undefined when none of the names is there. */
  maybe(...names: string[]): number | undefined {
    for (const name of names) {
      const value = this.config[name]
      if (value === undefined || value === null) continue
      return this.number(name)
    }
    return undefined
  }

  /** A list of numbers. */
  numbers(name: string): readonly number[] {
    const value = this.config[name]
    if (!Array.isArray(value) || !value.every((v) => typeof v === 'number' && Number.isFinite(v)))
      throw this.missing([name], 'a list of numbers')
    return value as number[]
  }

  /** A list of strings, or undefined. */
  optionalNames(name: string): readonly string[] | undefined {
    const value = this.config[name]
    if (value === undefined || value === null) return undefined
    if (!Array.isArray(value) || !value.every((v) => typeof v === 'string'))
      throw new ModelError(`'${name}' in ${this.where} must be a list of strings, not ${JSON.stringify(value)}.`)
    return value as string[]
  }

  /** Refuses a setting that changes the numbers in a way that is not implemented. */
  refuseUnless(name: string, ...allowed: readonly unknown[]): void {
    const value = this.config[name]
    if (value !== undefined && value !== null && !allowed.includes(value))
      throw new ModelError(
        `'${name}' in ${this.where} is ${JSON.stringify(value)}, which this family does not support; it must be ${allowed.map((a) => JSON.stringify(a)).join(' or ')}.`,
      )
  }

  /** A boolean, with a default. */
  flag(name: string, otherwise: boolean): boolean {
    const value = this.config[name] ?? otherwise
    if (typeof value !== 'boolean') throw new ModelError(`'${name}' in ${this.where} must be true or false, not ${JSON.stringify(value)}.`)
    return value
  }

  /** One of the keys of a table; returns what the table holds for it. */
  choice<T>(name: string, table: Readonly<Record<string, T>>, otherwise?: string): T {
    const value = this.config[name] ?? otherwise
    if (typeof value === 'string' && Object.hasOwn(table, value)) return table[value] as T
    const near = typeof value === 'string' ? nearest(value, Object.keys(table)) : undefined
    throw new ModelError(
      `'${name}' in ${this.where} is ${JSON.stringify(value)}, which is not known; known are ${Object.keys(table).join(', ')}${near ? ` (nearest: ${near})` : ''}.`,
    )
  }

  /** Whether the config says something about a setting, be it that there is none. */
  has(name: string): boolean {
    return this.config[name] !== undefined
  }

  /** A nested object, or undefined. */
  section(name: string): ConfigReader | undefined {
    const value = this.config[name]
    return value && typeof value === 'object' && !Array.isArray(value)
      ? new ConfigReader(value as Config, `${this.where} → ${name}`)
      : undefined
  }

  private missing(names: string[], what: string): ModelError {
    return new ModelError(`${this.where} needs ${what} called ${names.map((n) => `'${n}'`).join(' or ')}.`)
  }
}
