/** @file Every op of the engine; importing it fills the op table. */
export * from './attention.ts'
export * from './elementwise.ts'
export * from './indexing.ts'
export * from './layout.ts'
export * from './leaf.ts'
export * from './linear.ts'
export * from './norm.ts'
export * from './reduce.ts'
