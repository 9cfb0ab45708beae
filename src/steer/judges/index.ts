/** @file Judges of steering. */
export {
  classifierJudge,
  type LabelledText,
  type TextClassifier,
  type TextClassifierOptions,
  trainTextClassifier,
} from './classifier.ts'
export { type EndpointJudgeOptions, endpointJudge } from './endpoint.ts'
export { functionJudge, type Judged, judged, type SteeringJudge, type WrittenText } from './judge.ts'
export { continuationLogProbabilities, logOddsJudge } from './log-odds.ts'
export { probeJudge } from './probe.ts'
export { wordJudge } from './words.ts'
