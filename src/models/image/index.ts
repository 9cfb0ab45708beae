/** @file Images for models: decoding, resizing, the steps of a processor file. */
export { decodeImage, type Picture } from './decode.ts'
export { type ImageProcessor, type ImageSize, pixelValues, readProcessor } from './processor.ts'
export { type Resampling, resize } from './resize.ts'
