/**
 * @file A pickle interpreter that can build lists, tuples, dictionaries and tensors, and nothing else.
 *
 * A pickle is a program that may call any function of Python. Here a name is never looked up anywhere: the few that describe
 * tensors are rows of a table, and any other is refused by name before anything is made of it.
 */
import { FormatError } from '../../base/errors.ts'

/** A name of Python that a pickle mentions and that the reader knows; it is inert. */
export class Global {
  readonly path: string
  constructor(path: string) {
    this.path = path
  }
}

/** A storage: a run of elements that tensors are views of, named by a persistent id. */
export class StorageRef {
  /** `torch.FloatStorage`, or `torch.UntypedStorage`. */
  readonly kind: string
  readonly key: string
  /** Number of elements; of bytes for an untyped storage. */
  readonly length: number
  constructor(kind: string, key: string, length: number) {
    this.kind = kind
    this.key = key
    this.length = length
  }
}

/** A tensor: a view of a storage, in elements. */
export class TensorRef {
  readonly storage: StorageRef
  readonly offset: number
  readonly shape: readonly number[]
  readonly strides: readonly number[]
  /** Name of the element type where the storage has none: `torch.float8_e4m3fn`. */
  readonly dtype: string | undefined
  constructor(storage: StorageRef, offset: number, shape: readonly number[], strides: readonly number[], dtype?: string) {
    this.storage = storage
    this.offset = offset
    this.shape = shape
    this.strides = strides
    this.dtype = dtype
  }
}

/** A tuple, apart from lists because it cannot grow. */
export class Tuple {
  readonly items: readonly PickleValue[]
  constructor(items: readonly PickleValue[]) {
    this.items = items
  }
}

/** What a pickle can hold. */
export type PickleValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | PickleValue[]
  | Map<PickleValue, PickleValue>
  | Tuple
  | Global
  | StorageRef
  | TensorRef

/** The pickle goes on beyond the bytes that were given. */
export class PickleCut extends FormatError {}

/** What a known name does when the pickle calls it; undefined where it may be mentioned but not called. */
export type Callable = (args: readonly PickleValue[], fail: (problem: string) => never) => PickleValue

/** What names a pickle may use, and what persistent ids mean. */
export interface PickleRules {
  /** What to call the file in a message. */
  readonly name: string
  readonly globals: Readonly<Record<string, Callable | undefined>>
  persistent(id: PickleValue, fail: (problem: string) => never): PickleValue
}

const MARK = Symbol('mark')
type Slot = PickleValue | typeof MARK

class Machine {
  readonly rules: PickleRules
  readonly bytes: Uint8Array
  readonly view: DataView
  at: number
  readonly stack: Slot[] = []
  readonly memo = new Map<number, PickleValue>()
  result: PickleValue | undefined

  constructor(bytes: Uint8Array, at: number, rules: PickleRules) {
    this.bytes = bytes
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.at = at
    this.rules = rules
  }

  readonly fail: (problem: string) => never = (problem) => {
    throw new FormatError(
      `The pickle in ${this.rules.name} ${problem}; convert the checkpoint to safetensors on a machine where you trust it.`,
    )
  }

  /** Passes over `length` bytes and returns where they begin. */
  take(length: number): number {
    if (length > this.bytes.length - this.at) throw new PickleCut(`The pickle in ${this.rules.name} is truncated; fetch it again.`)
    const at = this.at
    this.at += length
    return at
  }

  takeLong(): number {
    const value = this.view.getBigUint64(this.take(8), true)
    return value > BigInt(Number.MAX_SAFE_INTEGER) ? this.fail(`has a value of ${value} bytes`) : Number(value)
  }

  text(length: number): string {
    const at = this.take(length)
    return new TextDecoder('utf-8', { ignoreBOM: true }).decode(this.bytes.subarray(at, at + length))
  }

  line(): string {
    const end = this.bytes.indexOf(0x0a, this.at)
    const text = this.text((end < 0 ? this.bytes.length : end) - this.at)
    this.take(1)
    return text
  }

  pop(): PickleValue {
    const value = this.stack.pop()
    return value === undefined || value === MARK ? this.fail('takes a value that it has not made') : value
  }

  popToMark(): PickleValue[] {
    const mark = this.stack.lastIndexOf(MARK)
    if (mark < 0) return this.fail('closes a group that it has not opened')
    const items = this.stack.splice(mark).slice(1)
    return items as PickleValue[]
  }

  push(value: PickleValue): void {
    this.stack.push(value)
  }

  /** The value on top, which the next instruction adds to. */
  top(): PickleValue {
    const value = this.stack.at(-1)
    return value === undefined || value === MARK ? this.fail('takes a value that it has not made') : value
  }

  remember(key: number): void {
    this.memo.set(key, this.top())
  }

  recall(key: number): void {
    const value = this.memo.get(key)
    this.push(value === undefined ? this.fail(`recalls the value ${key}, which it has not made`) : value)
  }

  global(module: string, name: string): Global {
    const path = `${module}.${name}`
    if (Object.hasOwn(this.rules.globals, path)) return new Global(path)
    return this.fail(`asks for ${path}, which is no part of a tensor, and running it would be unsafe, so the file was not loaded`)
  }

  call(callee: PickleValue, args: PickleValue): PickleValue {
    if (!(callee instanceof Global) || !(args instanceof Tuple)) return this.fail('calls something that is no function')
    const callable = this.rules.globals[callee.path]
    return callable ? callable(args.items, this.fail) : this.fail(`calls ${callee.path}, which is not called for a tensor`)
  }

  setItems(items: readonly PickleValue[]): void {
    const target = this.top()
    if (!(target instanceof Map) || items.length % 2 !== 0) this.fail('sets items of something that is no dictionary')
    for (let i = 0; i < items.length; i += 2) target.set(items[i]!, items[i + 1]!)
  }

  append(items: readonly PickleValue[]): void {
    const target = this.top()
    if (!Array.isArray(target)) this.fail('appends to something that is no list')
    for (const item of items) target.push(item)
  }

  /** Attributes of a state dict (its `_metadata`) say nothing about tensors; attributes of anything else are refused. */
  build(): void {
    this.pop()
    if (!(this.top() instanceof Map)) this.fail('sets attributes of something that is no dictionary')
  }

  integer(length: number): number | bigint {
    const at = this.take(length)
    let value = 0n
    for (let i = length - 1; i >= 0; i--) value = (value << 8n) | BigInt(this.bytes[at + i]!)
    const exact = BigInt.asIntN(length * 8, value)
    return Number.isSafeInteger(Number(exact)) ? Number(exact) : exact
  }

  dictionary(items: readonly PickleValue[]): void {
    this.push(new Map())
    this.setItems(items)
  }
}

/** Integers of Python that are read: longer ones are in no checkpoint, and making them would take quadratic time. */
const LONGEST_INTEGER = 16

interface Instruction {
  readonly name: string
  run(m: Machine): void
}

/** The instructions that tensors need; any other is refused by its code. */
const instructions: Readonly<Record<number, Instruction>> = {
  128: { name: 'PROTO', run: (m) => void m.take(1) },
  149: { name: 'FRAME', run: (m) => void m.take(8) },
  46: {
    name: 'STOP',
    run: (m) => {
      m.result = m.pop()
    },
  },
  40: { name: 'MARK', run: (m) => void m.stack.push(MARK) },
  48: { name: 'POP', run: (m) => void m.stack.pop() },
  49: { name: 'POP_MARK', run: (m) => void m.popToMark() },
  78: { name: 'NONE', run: (m) => m.push(null) },
  136: { name: 'NEWTRUE', run: (m) => m.push(true) },
  137: { name: 'NEWFALSE', run: (m) => m.push(false) },
  74: { name: 'BININT', run: (m) => m.push(m.view.getInt32(m.take(4), true)) },
  75: { name: 'BININT1', run: (m) => m.push(m.view.getUint8(m.take(1))) },
  77: { name: 'BININT2', run: (m) => m.push(m.view.getUint16(m.take(2), true)) },
  138: {
    name: 'LONG1',
    run: (m) => {
      const length = m.view.getUint8(m.take(1))
      m.push(length > LONGEST_INTEGER ? m.fail(`has an integer of ${length} bytes`) : m.integer(length))
    },
  },
  71: { name: 'BINFLOAT', run: (m) => m.push(m.view.getFloat64(m.take(8), false)) },
  88: { name: 'BINUNICODE', run: (m) => m.push(m.text(m.view.getUint32(m.take(4), true))) },
  140: { name: 'SHORT_BINUNICODE', run: (m) => m.push(m.text(m.view.getUint8(m.take(1)))) },
  141: { name: 'BINUNICODE8', run: (m) => m.push(m.text(m.takeLong())) },
  85: { name: 'SHORT_BINSTRING', run: (m) => m.push(m.text(m.view.getUint8(m.take(1)))) },
  84: { name: 'BINSTRING', run: (m) => m.push(m.text(m.view.getUint32(m.take(4), true))) },
  93: { name: 'EMPTY_LIST', run: (m) => m.push([]) },
  108: { name: 'LIST', run: (m) => m.push(m.popToMark()) },
  97: { name: 'APPEND', run: (m) => m.append([m.pop()]) },
  101: { name: 'APPENDS', run: (m) => m.append(m.popToMark()) },
  41: { name: 'EMPTY_TUPLE', run: (m) => m.push(new Tuple([])) },
  116: { name: 'TUPLE', run: (m) => m.push(new Tuple(m.popToMark())) },
  133: { name: 'TUPLE1', run: (m) => m.push(new Tuple([m.pop()])) },
  134: { name: 'TUPLE2', run: (m) => m.push(new Tuple([m.pop(), m.pop()].reverse())) },
  135: { name: 'TUPLE3', run: (m) => m.push(new Tuple([m.pop(), m.pop(), m.pop()].reverse())) },
  125: { name: 'EMPTY_DICT', run: (m) => m.push(new Map()) },
  100: { name: 'DICT', run: (m) => m.dictionary(m.popToMark()) },
  115: { name: 'SETITEM', run: (m) => m.setItems([m.pop(), m.pop()].reverse()) },
  117: { name: 'SETITEMS', run: (m) => m.setItems(m.popToMark()) },
  113: { name: 'BINPUT', run: (m) => m.remember(m.view.getUint8(m.take(1))) },
  114: { name: 'LONG_BINPUT', run: (m) => m.remember(m.view.getUint32(m.take(4), true)) },
  148: { name: 'MEMOIZE', run: (m) => m.remember(m.memo.size) },
  104: { name: 'BINGET', run: (m) => m.recall(m.view.getUint8(m.take(1))) },
  106: { name: 'LONG_BINGET', run: (m) => m.recall(m.view.getUint32(m.take(4), true)) },
  99: { name: 'GLOBAL', run: (m) => m.push(m.global(m.line(), m.line())) },
  147: {
    name: 'STACK_GLOBAL',
    run: (m) => {
      const [name, module] = [m.pop(), m.pop()]
      m.push(m.global(String(module), String(name)))
    },
  },
  82: {
    name: 'REDUCE',
    run: (m) => {
      const [args, callee] = [m.pop(), m.pop()]
      m.push(m.call(callee, args))
    },
  },
  98: { name: 'BUILD', run: (m) => m.build() },
  81: { name: 'BINPERSID', run: (m) => m.push(m.rules.persistent(m.pop(), m.fail)) },
}

/** Reads one pickle from byte `start`; throws {@link PickleCut} where it goes on beyond `bytes`, FormatError where it wants anything else. */
export function readPickle(bytes: Uint8Array, start: number, rules: PickleRules): { value: PickleValue; end: number } {
  const machine = new Machine(bytes, start, rules)
  while (machine.result === undefined) {
    const code = bytes[machine.take(1)]!
    const instruction = instructions[code]
    if (instruction === undefined) machine.fail(`has the instruction ${code}, which no tensor needs`)
    else instruction.run(machine)
  }
  return { value: machine.result, end: machine.at }
}
