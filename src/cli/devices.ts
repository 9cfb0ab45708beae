/** @file Whether a device of the contract can be used on this machine. */
import { readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { ModelError, messageOf } from '../base/errors.ts'
import { add, type Device, input, Program, SessionCache } from '../tensor/index.ts'

/** The devices, in the order in which they are told. */
export const devices: readonly Device[] = ['cpu', 'webgpu', 'cuda']

/** Why a device cannot be used here, or undefined where it can: a tiny program is run on it. */
export async function whyAbsent(device: Device): Promise<string | undefined> {
  // ONNX Runtime writes complaints of its own to stderr before it fails, so what is plainly absent is not tried.
  if (device === 'cuda' && !hasCudaLibrary()) return 'ONNX Runtime was installed without its CUDA libraries'
  const cache = new SessionCache(1e6)
  try {
    const x = input('x', 'float32', [1])
    const program = await Program.of({ y: add(x, 1) }, { cache, device })
    const { y } = await program.run({ x: { dtype: 'float32', shape: [1], data: Float32Array.of(1) } })
    return y.data[0] === 2 ? undefined : 'a test program gave a wrong number'
  } catch (error) {
    // Behind its own source line and condition the runtime says what is the matter.
    const reason = messageOf(error).replace(/^.*could not compile the program on \w+: /s, '')
    return reason
      .replace(/^\/\S+:\d+ .*? was false\.\s*/s, '')
      .replace(/\s+/g, ' ')
      .trim()
  } finally {
    await cache.clear()
  }
}

/** Refuses a device that cannot be used here. */
export async function checkDevice(device: Device): Promise<void> {
  if (device === 'cpu') return
  const reason = await whyAbsent(device)
  if (reason !== undefined)
    throw new ModelError(
      `The device '${device}' cannot be used on this machine (${reason}): leave --device out to run on the CPU; 'actlens doctor' shows what there is.`,
    )
}

function hasCudaLibrary(): boolean {
  const root = dirname(createRequire(import.meta.url).resolve('onnxruntime-node/package.json'))
  const files = readdirSync(join(root, 'bin'), { recursive: true, encoding: 'utf8' })
  return files.some((f) => /providers_cuda\.(so|dll)$/.test(f))
}
