/** @file Text of models: tokenizers of every format behind one interface, chat templates. Runs in Node and in a browser. */

export { type ChatMessage, type ChatOptions, encodeChat, renderChat } from './chat.ts'
export { loadHfTokenizer, type ReadText, readHfTokenizer } from './folder.ts'
export { type GgufMetadata, ggufTokenizer } from './gguf-tokenizer.ts'
export { createHfTokenizer, type HfTokenizerFiles } from './hf-tokenizer.ts'
export { parseLlama2cTokenizer } from './llama2c-tokenizer.ts'
export {
  createDecoder,
  type DecodeOptions,
  type EncodeOptions,
  type StreamDecoder,
  type StreamDecoderOptions,
  type Tokenizer,
  type TokenOffsets,
} from './tokenizer.ts'
