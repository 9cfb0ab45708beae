/** @file ONNX files: read, checked, cut, spliced, lifted and written. */
export { checkTensor, elementsOf, externalPlace, isExternal, order, storedBytes } from './check.ts'
export { type Composed, type ComposeRequest, compose, encode, typed } from './compose.ts'
export { cannotWrite, fusedSites, headsOf, isFused } from './fused-attention.ts'
export {
  type GraphProto,
  type ModelProto,
  ModelProtoSchema,
  type NodeProto,
  type TensorProto,
  type ValueInfoProto,
} from './gen/onnx_pb.ts'
export { lift, lifts } from './lift.ts'
export { readNames, subgraphs } from './names.ts'
export { externalFiles, type OnnxFile, readOnnx, tensorsOf } from './read.ts'
export { type Splice, type SpliceRequest, splice } from './splice.ts'
export { dtypeOf, floatTypes, inferTypes, type OnnxTensor, type TypesOptions } from './types.ts'
export { innerName, writeOut } from './write-out.ts'
