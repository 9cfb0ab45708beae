/** @file What the browser tab gives to a model: threads, WebGPU, a private file system. */
import { getRuntime } from '../tensor/index.ts'
import { hasAdapter } from '../tensor/runtime/web-files.ts'

/** What a page can use here. */
export interface Place {
  /** Name and version of the runtime. */
  readonly runtime: string
  /** Whether the page is isolated from other origins, without which there is one thread. */
  readonly isolated: boolean
  /** Whether a WebGPU adapter answers. */
  readonly webgpu: boolean
  /** Whether what is fetched can be kept for the next visit. */
  readonly keepsFiles: boolean
  /** What is missing, and how to have it, in sentences. */
  readonly notes: readonly string[]
}

/** Tells what this tab gives, as `actlens doctor` does for a machine. */
export async function place(): Promise<Place> {
  const runtime = await getRuntime()
  const webgpu = await hasAdapter()
  return {
    runtime: runtime.version,
    isolated: globalThis.crossOriginIsolated === true,
    webgpu,
    keepsFiles: globalThis.isSecureContext && 'storage' in navigator,
    notes: [
      ...(runtime.notes?.() ?? []),
      ...('gpu' in navigator && !webgpu ? ['This browser knows WebGPU but finds no adapter for it, so that the device is cpu.'] : []),
    ],
  }
}
