/** @file Resistance to steering: calibrated boosts, attempts and their rates, replays, off-topic detectors and their ablation. */
export { type Rate, type ResistanceRates, resistanceRates, restartPhrases, splitAttempts, splitTokens, wilson } from './attempts.ts'
export { Bisection, type BisectionOptions, type Calibration, type CalibrationOptions, calibrateBoost } from './bisection.ts'
export {
  ablation,
  type Detector,
  type DetectorOptions,
  derangement,
  findDetectors,
  randomSets,
  silentOnMatched,
} from './detectors.ts'
export { type ReferenceJudge, type ReferenceOptions, referenceJudge } from './judge.ts'
export type { FeatureSource } from './pooled.ts'
export { irrelevantLatents, measureResistance, type ProtocolOptions, type ResistanceReport } from './protocol.ts'
export {
  type Answer,
  type AnswerPairs,
  type Condition,
  type Distractor,
  type Judge,
  metaPrompts,
  type ResistanceOptions,
  type ResistanceRun,
  ResistanceStudy,
  type Trial,
} from './trials.ts'
