import type { Plugin } from 'vite'

export function browserTable(): Map<string, string>
export function browserSources(): Plugin
