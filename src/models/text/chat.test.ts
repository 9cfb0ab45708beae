import { describe, expect, test } from 'vitest'
import { FormatError, ModelError, UsageError } from '../../base/errors.ts'
import { type ChatMessage, chatRenderer, encodeChat, renderChat } from './chat.ts'
import { createHfTokenizer } from './hf-tokenizer.ts'
import { recorded } from './test-files.ts'

const user: ChatMessage = { role: 'user', content: 'Hi' }
const system: ChatMessage = { role: 'system', content: 'Be brief.' }
const tool = {
  type: 'function',
  function: { name: 'get_weather', parameters: { type: 'object', properties: { city: { type: 'string' } } } },
}

/** A template in the manner of those that know tools, with a default system message. */
const withTools = `{%- if tools is not none %}
    {{- '<|system|>' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n' }}
    {%- endif %}
    {{- '# Tools' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- eos_token }}
{%- elif messages[0].role == 'system' %}
    {{- '<|system|>' + messages[0].content + eos_token }}
{%- else %}
    {{- '<|system|>You are helpful.' + eos_token }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<|assistant|>' }}
        {%- for call in message.tool_calls %}
            {{- '<call>' + call.function.name + '(' + (call.function.arguments | tojson) + ')</call>' }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message.role != 'system' %}
        {{- '<|' + message.role + '|>' + message.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think></think>' }}{%- endif %}
{%- endif %}`

/** A template that insists on turns and takes no system message. */
const strict = `{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{{ '[' + message['role'] + ']' + message['content'] }}{% endfor %}`

const tokens = { bos_token: '<s>', eos_token: '</s>' }
const tools = chatRenderer(withTools, tokens)
const turns = chatRenderer(strict, tokens)

describe('a chat template', () => {
  test('default and given system message', () => {
    expect(tools?.([user])).toBe('<|system|>You are helpful.</s><|user|>Hi</s><|assistant|>')
    expect(tools?.([system, user], { addGenerationPrompt: false })).toBe('<|system|>Be brief.</s><|user|>Hi</s>')
  })

  test('tools, calls and their answers', () => {
    const call: ChatMessage = { role: 'assistant', tool_calls: [{ function: { name: 'get_weather', arguments: { city: 'Rome' } } }] }
    const answer: ChatMessage = { role: 'tool', content: ' sunny ' }
    expect(tools?.([system, user, call, answer], { tools: [tool] })).toBe(
      '<|system|>Be brief.\n# Tools\n{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}</s>' +
        '<|user|>Hi</s><|assistant|><call>get_weather({"city": "Rome"})</call></s><|tool|>sunny</s><|assistant|>',
    )
  })

  test('further variables', () => {
    expect(tools?.([user], { variables: { enable_thinking: false } })).toMatch(/<think><\/think>$/)
  })

  test('refusals of the template are passed on', () => {
    expect(turns?.([user, { role: 'assistant', content: 'Yes?' }])).toBe('<s>[user]Hi[assistant]Yes?')
    expect(() => turns?.([user, user])).toThrow(/does not take these messages: Conversation roles must alternate/)
    expect(() => turns?.([system, user])).toThrow(/does not take these messages: System role not supported/)
    expect(() => turns?.([system, user])).toThrow(ModelError)
  })

  test('what a template would drop without a word is refused', () => {
    const silent = chatRenderer("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", {})
    expect(() => silent?.([system, user])).toThrow(/ignores system messages: put what it says into the first user message/)
    expect(() => silent?.([user], { tools: [tool] })).toThrow(/ignores tools \(get_weather\)/)
    expect(silent?.([user])).toBe('Hi')
  })

  test('several templates by name', () => {
    const several = chatRenderer(
      new Map([
        ['default', 'plain {{ messages[0].content }}'],
        ['tool_use', 'tools {{ tools[0].function.name }}'],
      ]),
      {},
    )
    expect(several?.([user])).toBe('plain Hi')
    expect(several?.([user], { tools: [tool] })).toBe('tools get_weather')
    expect(several?.([user], { template: 'tool_use', tools: [tool] })).toBe('tools get_weather')
    expect(() => several?.([user], { template: 'rag' })).toThrow(/no chat template 'rag'; it has default, tool_use/)
  })

  test('a template that cannot be read, and messages that are none', () => {
    expect(() => chatRenderer('{% for %}', {})?.([user])).toThrow(FormatError)
    expect(() => chatRenderer('{% for %}', {})?.([user])).toThrow(/chat template cannot be read/)
    expect(() => tools?.([])).toThrow(/The chat has no messages/)
    expect(() => tools?.([{ role: '' }])).toThrow(UsageError)
    expect(() => tools?.([{ role: 'user' }])).toThrow(/Message 0 of the chat \(user\) has no content/)
    expect(chatRenderer(undefined, {})).toBeUndefined()
  })
})

describe('with a tokenizer', () => {
  const { made } = recorded<{ made: Record<string, { tokenizer: unknown }> }>('hf-reference.json')
  const open = (config: object) =>
    createHfTokenizer({ tokenizer: made.gpt2?.tokenizer, config: { bos_token: '<s>', eos_token: '</s>', ...config } })

  test('the template brings its own special tokens', () => {
    const tokenizer = open({ chat_template: strict })
    const ids = encodeChat(tokenizer, [user])
    expect(ids.filter((id) => id === 1)).toEqual([1])
    expect(tokenizer.decode(ids)).toBe('<s>[user]Hi')
    const named = open({
      chat_template: [
        { name: 'default', template: 'a' },
        { name: 'tool_use', template: '{{ tools[0].function.name }}' },
      ],
    })
    expect(renderChat(named, [user], { tools: [tool] })).toBe('get_weather')
  })

  test('a model without one is refused', () => {
    expect(() => renderChat(open({}), [user])).toThrow(/has no chat template, so it was not trained to chat: use a plain prompt/)
    expect(() => renderChat(open({}), [user])).toThrow(ModelError)
  })
})
