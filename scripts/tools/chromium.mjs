/** @file The Chromium of this machine, and how it is started without a screen; for tests and benchmarks of pages. */
import { existsSync } from 'node:fs'

const places = [
  process.env.CHROMIUM,
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
  '/usr/bin/google-chrome-stable',
]

/** Its path, where there is one; CHROMIUM names another. */
export const chromiumPath = places.find((p) => p !== undefined && existsSync(p))

/** Without a screen, and asking nothing of the network by itself. */
export const chromiumFlags = [
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
]
