/** @file Weight formats: every checkpoint becomes a {@link WeightStore}, read by range and decoded on demand. */
export { type BlockPacker, type PackedBlocks, packers, roundedBlock, roundToBlocks } from './block-pack.ts'
export { type ByteSource, fromBlob, fromBytes, openFile } from './bytes.ts'
export { bf16ToF32, f8e4m3ToF32, f8e5m2ToF32, f16ToF32, f32ToBf16, f32ToF16 } from './float.ts'
export { openGguf } from './gguf.ts'
export { type Llama2cConfig, type Llama2cOptions, Llama2cStore, openLlama2c } from './llama2c.ts'
export { openNpz } from './npz.ts'
export { openPickle } from './pickle.ts'
export { encodePickle } from './pickle-write.ts'
export { decodeSafetensors, openSafetensors } from './safetensors.ts'
export {
  createSafetensorsWriter,
  encodeSafetensors,
  type SafetensorsEntry,
  type SafetensorsWriter,
  writeSafetensors,
} from './safetensors-write.ts'
export { type MetadataValue, type StoredTensor, WeightStore, type WeightStoreContents } from './store.ts'
export { type BlockType, type ElementType, type StoredType, storedTypes } from './stored-types.ts'
