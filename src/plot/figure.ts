/** @file What a picture is: kind, axes, marks. */

/** A picture as data: what is drawn, with its axes named. */
export interface Figure {
  readonly name: string
  readonly title: string
  /** What is seen, in a sentence. */
  readonly caption: string
  readonly kind: 'line' | 'bar' | 'dot' | 'heat'
  readonly x: Axis
  readonly y: Axis
  /** What tells the lines, groups of bars or kinds of dots apart; in a heat map the name of the value. */
  readonly series?: Axis
  /** One object for each mark, by the keys of the axes; `low` and `high` give an interval, `label` a text at the mark. */
  readonly data: readonly Readonly<Record<string, string | number>>[]
}

/** An axis of a figure: key of the data, label with its unit. */
export interface Axis {
  readonly key: string
  readonly label: string
  readonly scale?: 'linear' | 'log'
  /** The values are names, in this order where it is given. */
  readonly domain?: readonly (string | number)[]
}
