import { describe, expect, test } from 'vitest'
import { chooseFiles, isModelFile } from './hub-files.ts'

const files = (...paths: string[]) => paths.map((path) => ({ path, size: 1 }))
const chosen = (all: ReturnType<typeof files>, wanted?: string) => chooseFiles('org/name', all, wanted).files.map((file) => file.path)
const small = ['config.json', 'tokenizer.json', 'tokenizer_config.json', 'generation_config.json', 'merges.txt', 'chat_template.jinja']

describe('choosing the files of a model', () => {
  test('safetensors before GGUF before ONNX before pickles, and never two forms', () => {
    const every = files(...small, 'model.safetensors', 'a.gguf', 'onnx/model.onnx', 'pytorch_model.bin', 'README.md', 'flax_model.msgpack')
    const left = (...gone: string[]) => every.filter((file) => !gone.includes(file.path))
    expect(chosen(every)).toEqual([...small, 'model.safetensors'])
    expect(chosen(left('model.safetensors'))).toEqual([...small, 'a.gguf'])
    expect(chosen(left('model.safetensors', 'a.gguf'))).toEqual([...small, 'onnx/model.onnx'])
    expect(chosen(left('model.safetensors', 'a.gguf', 'onnx/model.onnx'))).toEqual([...small, 'pytorch_model.bin'])
  })

  test('an index comes first and is to be read', () => {
    const choice = chooseFiles('r', files('model.safetensors.index.json', 'model-00001-of-00002.safetensors', 'consolidated.safetensors'))
    expect(choice.index?.path).toBe('model.safetensors.index.json')
    expect(choice.files.length).toBe(1)
  })

  test('adapters, and weights under other names', () => {
    expect(chosen(files('adapter_config.json', 'adapter_model.safetensors'))).toEqual(['adapter_config.json', 'adapter_model.safetensors'])
    expect(chosen(files('config.json', 'sae_weights.safetensors', 'deep/x.safetensors'))).toEqual([
      'config.json',
      'sae_weights.safetensors',
    ])
  })

  test('ONNX brings its external data', () => {
    const onnx = files('onnx/model.onnx', 'onnx/model.onnx_data', 'onnx/model_q4.onnx', 'onnx/model_q4.onnx_data')
    expect(chosen(onnx)).toEqual(['onnx/model.onnx', 'onnx/model.onnx_data'])
    expect(chosen(onnx, 'onnx/model_q4.onnx')).toEqual(['onnx/model_q4.onnx', 'onnx/model_q4.onnx_data'])
  })

  test('one of several GGUF files must be named', () => {
    const gguf = files('config.json', 'm-Q4_0.gguf', 'm-Q8_0.gguf')
    expect(() => chosen(gguf)).toThrow(
      /holds 2 GGUF files; name one of them, as in 'org\/name#m-Q4_0\.gguf'\. They are: m-Q4_0\.gguf, m-Q8_0\.gguf/,
    )
    expect(chosen(gguf, 'm-Q8_0.gguf')).toEqual(['config.json', 'm-Q8_0.gguf'])
    expect(chosen(gguf, 'q8_0')).toEqual(['config.json', 'm-Q8_0.gguf'])
    expect(() => chosen(gguf, 'q')).toThrow(/several weight files named like 'q'\. Choose one of: m-Q4_0\.gguf, m-Q8_0\.gguf/)
    expect(() => chosen(gguf, 'f16')).toThrow(/no weight file named 'f16'\. Choose one of/)
    expect(() => chosen(files('config.json'), 'f16')).toThrow(/It has no weight files at all/)
  })

  test('a split GGUF file is one', () => {
    const split = files('m-Q8_0-00001-of-00002.gguf', 'm-Q8_0-00002-of-00002.gguf')
    expect(chosen(split)).toEqual(split.map((file) => file.path))
    expect(chosen([...split, ...files('m-Q4_0.gguf')], 'Q8_0')).toEqual(split.map((file) => file.path))
  })

  test('no weights is an error that lists what is there', () => {
    expect(() => chosen(files('README.md', 'config.json'))).toThrow(
      /org\/name holds no weights in a format we read .* It holds: README\.md, config\.json/,
    )
  })

  test('model files are told from others', () => {
    expect(['config.json', 'a.gguf', 'x/model.safetensors'].every(isModelFile)).toBe(true)
    expect(['README.md', 'a.png', 'train.py'].some(isModelFile)).toBe(false)
  })
})
