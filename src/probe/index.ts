/** @file Probes: linear read-outs of activations, judged against controls. */
export { type FeatureOptions, readFeatures, type TextFeatures } from './features.ts'
export { groupsOf, makeFolds } from './folds.ts'
export { type FitTask, type ProbeKind, probeKinds, type Regularisation } from './kinds.ts'
export { bootstrap, type Calibration, type Estimate, platt } from './metrics.ts'
export { loadProbes, Probe, type ProbeParts, type ProbeRecord, saveProbes } from './probe.ts'
export { type Features, fitLinear, type LinearFit, type LinearProblem } from './solver.ts'
export { type ProbeOptions, probe, type SiteResult, type StudyResult, type StudySettings } from './study.ts'
export { columnOf, parseCsv, readTable, type TextTable } from './table.ts'
