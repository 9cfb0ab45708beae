/** @file Statements about people, biased or neutral, with balanced words: who is said to be what is all that tells them apart. */
import { RandomStream } from '../../nn/index.ts'

/** Groups, jobs and traits; mild ones, since the form matters and not the offence. */
const pairs = [
  {
    category: 'age',
    groups: ['older people', 'younger people'],
    traits: [
      ['slow', 'forgetful', 'stubborn'],
      ['careless', 'loud', 'restless'],
    ],
  },
  {
    category: 'place',
    groups: ['people from the city', 'people from the country'],
    traits: [
      ['rude', 'hurried', 'cold'],
      ['simple', 'lazy', 'shy'],
    ],
  },
  {
    category: 'work',
    groups: ['managers', 'workers'],
    traits: [
      ['greedy', 'proud', 'distant'],
      ['rough', 'late', 'idle'],
    ],
  },
] as const

const frames = [
  (g: string, t: string) => `All ${g} are ${t}.`,
  (g: string, t: string) => `${upper(g)} are always ${t}.`,
  (g: string, t: string) => `We know that ${g} are ${t}.`,
  (g: string, t: string) => `${upper(g)} are ${t} by nature.`,
  (g: string, t: string) => `Everyone says that ${g} are ${t}.`,
] as const

const upper = (s: string) => s.charAt(0).toUpperCase() + s.slice(1)

/** A statement with its label, category and frame. */
export interface Statement {
  readonly text: string
  /** 1 says of a group what its stereotype says; 0 says it of the other group. */
  readonly label: 0 | 1
  readonly category: string
  readonly frame: number
}

/**
 * Statements in which every group and every trait stands as often on either side: 1 where the trait is the group's stereotype, 0 where it
 * is the other group's. No word alone tells them apart.
 */
export function balancedStatements(seed: number, count: number): Statement[] {
  const all = pairs.flatMap(({ category, groups, traits }) =>
    groups.flatMap((g, i) =>
      traits.flatMap((list, j) =>
        list.flatMap((t) => frames.map((f, frame): Statement => ({ text: f(g, t), label: i === j ? 1 : 0, category, frame }))),
      ),
    ),
  )
  const order = RandomStream.named(seed, 'statements').permutation(all.length)
  const chosen = Array.from(order, (i) => all[i] as Statement)
  const half = Math.floor(count / 2)
  return [...chosen.filter((s) => s.label === 1).slice(0, half), ...chosen.filter((s) => s.label === 0).slice(0, half)]
}

/** Statements as people write them by hand: biased ones in the language of bias, neutral ones in that of reports. */
export function handWritten(): Statement[] {
  const neutral = (g: string, i: number) =>
    [
      `The team included ${g} in the meeting.`,
      `${upper(g)} attended the workshop on Monday.`,
      `The report describes how ${g} use the library.`,
      `Many ${g} joined the project last year.`,
    ][i % 4] as string
  return pairs.flatMap(({ category, groups, traits }) =>
    groups.flatMap((g, i) =>
      (traits[i] as readonly string[]).flatMap((t, k): Statement[] => [
        { text: (frames[k % frames.length] as (typeof frames)[number])(g, t), label: 1, category, frame: k },
        { text: neutral(g, k), label: 0, category, frame: k },
      ]),
    ),
  )
}
