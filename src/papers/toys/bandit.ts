/** @file A two-armed bandit as a language: arms and rewards in turn, played by probability matching. */
import type { Config } from '../../models/config.ts'
import type { RandomStream } from '../../nn/index.ts'
import { generatedRows } from '../../run/index.ts'
import { normalCdf } from '../statistics.ts'
import type { SmallModel } from '../study.ts'

/** Sizes of the game: rewards are rounded to bins. */
export const bandit = { rounds: 14, bins: 10, noise: 1.5, priorStd: 2 } as const

const bos = 0
/** Token of an arm, 0 or 1. */
export const armToken = (arm: number): number => 1 + arm
/** Tokens of both arms. */
export const armTokens = [armToken(0), armToken(1)] as const
const rewardToken = (bin: number): number => 3 + bin
/** Number of tokens: the one that begins a game, the arms, the bins. */
export const banditVocab = 3 + bandit.bins

/** Mean rewards of the arms for a gap between them, in bins; a positive gap favours arm 1. */
export const armMeans = (gap: number): readonly [number, number] => [(bandit.bins - 1 - gap) / 2, (bandit.bins - 1 + gap) / 2]

/** The reward of a pull, as a bin. */
export function pull(mean: number, random: RandomStream): number {
  return Math.min(bandit.bins - 1, Math.max(0, Math.round(mean + bandit.noise * random.normal())))
}

/** A game that is going on: what a model reads of it. */
export class Game {
  readonly ids: number[] = [bos]
  readonly arms: number[] = []
  private readonly sums = [0, 0]
  private readonly counts = [0, 0]
  private readonly means: readonly [number, number]
  private readonly random: RandomStream

  constructor(gap: number, random: RandomStream) {
    this.means = armMeans(gap)
    this.random = random
  }

  /** Plays an arm and writes its reward down. */
  play(arm: number): void {
    const reward = pull(this.means[arm] as number, this.random)
    this.ids.push(armToken(arm), rewardToken(reward))
    this.arms.push(arm)
    this.sums[arm] = (this.sums[arm] as number) + reward
    this.counts[arm] = (this.counts[arm] as number) + 1
  }

  /** Probability, to a Bayesian with independent normal priors, that arm 1 is the better one. */
  get preference(): number {
    const posterior = [0, 1].map((arm) => {
      const precision = 1 / bandit.priorStd ** 2 + (this.counts[arm] as number) / bandit.noise ** 2
      const mean = ((bandit.bins - 1) / 2 / bandit.priorStd ** 2 + (this.sums[arm] as number) / bandit.noise ** 2) / precision
      return { mean, variance: 1 / precision }
    }) as [{ mean: number; variance: number }, { mean: number; variance: number }]
    return normalCdf((posterior[1].mean - posterior[0].mean) / Math.sqrt(posterior[0].variance + posterior[1].variance))
  }
}

/** A game played to its end by probability matching. */
function demonstration(random: RandomStream): number[] {
  const game = new Game(-4 + random.below(9), random)
  for (let t = 0; t < bandit.rounds; t++) game.play(random.next() < game.preference ? 1 : 0)
  return game.ids
}

const config: Config = {
  model_type: 'gpt2',
  n_embd: 48,
  n_layer: 4,
  n_head: 4,
  n_positions: 2 * bandit.rounds + 2,
  vocab_size: banditVocab,
  layer_norm_epsilon: 1e-5,
  activation_function: 'gelu_new',
}

/** The agent: a small model that has read many games. */
export function banditModel(seed: number, steps: number): SmallModel {
  return {
    config,
    data: generatedRows((random) => ({ ids: demonstration(random) }), { batch: 64, seed }),
    steps,
    rate: 3e-3,
    recipe: { game: bandit, batch: 64, actions: 'probability matching' },
  }
}
