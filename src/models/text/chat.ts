/** @file Chats: messages, and the template of a model that turns them into the one text it was trained on. */

import { Template } from '@huggingface/jinja'
import { FormatError, listed, ModelError, messageOf, UsageError } from '../../base/errors.ts'
import type { Tokenizer } from './tokenizer.ts'

/** One message of a chat, in the form that chat templates know (OpenAI's and Hugging Face's). */
export interface ChatMessage {
  /** Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows. */
  readonly role: string
  /** What is said; parts such as `{ type: 'text', text }` for models that take them. */
  readonly content?: string | readonly Readonly<Record<string, unknown>>[] | null
  /** Calls that the assistant makes, for templates that know them. */
  readonly tool_calls?: readonly unknown[]
  /** Further fields that a template may read: `name`, `tool_call_id`, `reasoning_content`. */
  readonly [field: string]: unknown
}

/** Options of rendering a chat. */
export interface ChatOptions {
  /** End with the beginning of the assistant's answer, so that generation continues with it; default true. */
  readonly addGenerationPrompt?: boolean
  /** Functions that the model may call, as JSON schemas. */
  readonly tools?: readonly unknown[]
  /** Name of the template where the model has several; default `default`, or `tool_use` where tools are given. */
  readonly template?: string
  /** Further variables of the template, such as `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>>
}

/** Chat templates of a model: one, or several by name. */
export type ChatTemplates = string | ReadonlyMap<string, string>

/**
 * A function that renders chats with a model's templates; `tokens` are variables such as `bos_token`. Undefined without a template.
 */
export function chatRenderer(
  templates: ChatTemplates | undefined,
  tokens: Readonly<Record<string, string>>,
): NonNullable<Tokenizer['chat']> | undefined {
  if (templates === undefined) return undefined
  const named = typeof templates === 'string' ? new Map([['default', templates]]) : templates
  const compiled = new Map<string, Template>()
  return (messages, options = {}) => {
    checkMessages(messages)
    const name = options.template ?? (options.tools?.length && named.has('tool_use') ? 'tool_use' : 'default')
    const source = named.get(name)
    if (source === undefined) throw new UsageError(`The model has no chat template '${name}'; it has ${listed(named.keys())}.`)
    const template = compiled.get(name) ?? compile(source)
    compiled.set(name, template)
    const text = render(template, messages, options, tokens)
    checkNothingLost(text, messages, options)
    return text
  }
}

/** Renders a chat, or says what to do where the model has no template. */
export function renderChat(tokenizer: Tokenizer, messages: readonly ChatMessage[], options?: ChatOptions): string {
  if (!tokenizer.chat) {
    throw new ModelError(
      'This model has no chat template, so it was not trained to chat: use a plain prompt, or a model that is tuned for chat (its name often ends in -Instruct or -Chat).',
    )
  }
  return tokenizer.chat(messages, options)
}

/** Token ids of a rendered chat; the template brings its own special tokens, so none are added. */
export function encodeChat(tokenizer: Tokenizer, messages: readonly ChatMessage[], options?: ChatOptions): number[] {
  return tokenizer.encode(renderChat(tokenizer, messages, options), { addSpecial: false })
}

function checkMessages(messages: readonly ChatMessage[]): void {
  if (messages.length === 0) throw new UsageError('The chat has no messages: give at least one, such as { role: "user", content: "Hi" }.')
  messages.forEach((message, i) => {
    if (typeof message.role !== 'string' || message.role === '')
      throw new UsageError(`Message ${i} of the chat has no role: it is 'system', 'user' or 'assistant'.`)
    if (message.content === undefined && message.tool_calls === undefined)
      throw new UsageError(`Message ${i} of the chat (${message.role}) has no content.`)
  })
}

function compile(source: string): Template {
  try {
    return new Template(source)
  } catch (error) {
    throw new FormatError(`The model's chat template cannot be read (${messageOf(error)}): give the whole prompt as text instead.`, {
      cause: error,
    })
  }
}

function render(
  template: Template,
  messages: readonly ChatMessage[],
  options: ChatOptions,
  tokens: Readonly<Record<string, string>>,
): string {
  try {
    return template.render({
      ...tokens,
      ...options.variables,
      messages,
      // Templates test `tools is not none`, so an absent list must be null.
      tools: options.tools?.length ? options.tools : null,
      add_generation_prompt: options.addGenerationPrompt ?? true,
    })
  } catch (error) {
    // Templates refuse in words, through raise_exception: "Conversation roles must alternate …".
    throw new ModelError(`The model's chat template does not take these messages: ${messageOf(error)}`, { cause: error })
  }
}

/** A template without a branch for system messages or tools drops them without a word. */
function checkNothingLost(text: string, messages: readonly ChatMessage[], options: ChatOptions): void {
  for (const { role, content } of messages) {
    if (role === 'system' && typeof content === 'string' && !text.includes(content.trim())) {
      throw new ModelError("The model's chat template ignores system messages: put what it says into the first user message instead.")
    }
  }
  const names = (options.tools ?? []).map(nameOfTool).filter((name) => name !== undefined)
  const lost = names.filter((name) => !text.includes(name))
  if (lost.length > 0) {
    throw new ModelError(
      `The model's chat template ignores tools (${listed(lost)}): use a model that is trained to call them, or describe them in a message.`,
    )
  }
}

function nameOfTool(tool: unknown): string | undefined {
  const record = tool as { name?: unknown; function?: { name?: unknown } } | null
  const name = record?.function?.name ?? record?.name
  return typeof name === 'string' ? name : undefined
}
