/** @file Sites: the vocabulary, addresses, `where`, and edits. */
export { positionAxis, type SiteInfo, SiteResolver, sequenceOf } from './address.ts'
export { type EditOpName, type EditOpRow, type EditPlace, editOps, type OwnEdit, type ParamRow } from './edit-ops.ts'
export * from './edits.ts'
export { type AxisName, rowOf, type SiteRow, siteRows, sitesMarkdown, vocabulary } from './vocabulary.ts'
export type { PositionRange, When, Where } from './where.ts'
