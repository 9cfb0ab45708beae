/** @file Methods on models that see. */
export { type HeadOptions, type ImageFeatures, imageFeatures, MemorabilityHead } from './memorability-head.ts'
