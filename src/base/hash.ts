/** @file SHA-256, in Node and in a browser. */

/** SHA-256 of a text or of bytes, as 64 hexadecimal digits. */
export async function sha256(value: string | BufferSource): Promise<string> {
  const digest = await globalThis.crypto.subtle.digest('SHA-256', typeof value === 'string' ? new TextEncoder().encode(value) : value)
  return [...new Uint8Array(digest)].map((b) => b.toString(16).padStart(2, '0')).join('')
}
