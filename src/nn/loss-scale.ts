/** @file Loss scaling for gradients in float16: the loss times a factor that grows until gradients overflow (Micikevicius et al. 2018). */
import { UsageError } from '../base/errors.ts'

/** Settings of {@link LossScale}; the defaults are PyTorch's. */
export interface LossScaleOptions {
  readonly initial?: number
  readonly growth?: number
  readonly backoff?: number
  /** Good steps after which the factor grows. */
  readonly interval?: number
}

/** The state of a loss scale: JSON. */
export interface LossScaleState {
  readonly value: number
  /** Good steps since the last change. */
  readonly good: number
}

/** Smallest factor; when gradients overflow even with it, the cause is not the precision. */
const smallest = 2 ** -24

/** A factor on the loss that follows what the gradients can bear. */
export class LossScale {
  private readonly options: Required<LossScaleOptions>
  state: LossScaleState

  constructor(options: LossScaleOptions = {}) {
    this.options = { initial: 65536, growth: 2, backoff: 0.5, interval: 2000, ...options }
    const { initial, growth, backoff } = this.options
    if (!(initial > 0 && growth >= 1 && backoff > 0 && backoff < 1))
      throw new UsageError('A loss scale needs initial > 0, growth ≥ 1 and backoff between 0 and 1.')
    this.state = { value: initial, good: 0 }
  }

  /** Notes a step; whether training can go on after it. */
  note(finite: boolean): boolean {
    const { value, good } = this.state
    const { growth, backoff, interval } = this.options
    if (!finite) this.state = { value: value * backoff, good: 0 }
    else if (good + 1 >= interval) this.state = { value: value * growth, good: 0 }
    else this.state = { value, good: good + 1 }
    return this.state.value >= smallest
  }
}
