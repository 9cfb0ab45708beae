/** @file What the whole page shares: the view and its link, the model, the theme, and whether the server is there. */
import type { HealthAnswer, ModelAnswer, ModelLine } from '../../../src/server/protocol.ts'
import { health, lines, onReach } from './api.ts'
import { Live } from './live.svelte.ts'
import { defaultView, fitted, fromLink, toLink, type View } from './view.ts'

/** How far a model has come. */
export type Loading = Extract<ModelLine, { type: 'progress' }>

const themeKey = 'actlens-theme'
/** Milliseconds between two looks after the server, when it is there and when it is gone. */
const lookAfter = { there: 5000, gone: 1000 }

class App {
  view = $state<View>(fromLink(location.hash))
  model = new Live<{ answer?: ModelAnswer; progress?: Loading }>()
  dark = $state(false)
  gone = $state(false)
  /** Counts returns of the server, so that views ask again. */
  returns = $state(0)
  #instance: string | undefined
  #written = ''

  /** The loaded model, or undefined while it loads. */
  get spec(): ModelAnswer | undefined {
    return this.model.value?.answer
  }

  /** Starts to follow the address, the theme and the server; returns what stops it. */
  start(): () => void {
    const onHash = () => {
      if (location.hash.slice(1) !== this.#written) this.view = fromLink(location.hash)
    }
    addEventListener('hashchange', onHash)
    const scheme = matchMedia('(prefers-color-scheme: dark)')
    const onScheme = () => {
      this.dark = (localStorage.getItem(themeKey) ?? (scheme.matches ? 'dark' : 'light')) === 'dark'
    }
    scheme.addEventListener('change', onScheme)
    onScheme()
    const offReach = onReach((reachable) => this.#reached(reachable))
    let timer: ReturnType<typeof setTimeout>
    const watch = async () => {
      const answer = document.visibilityState === 'visible' ? await health().catch(() => undefined) : undefined
      if (answer) this.#met(answer)
      timer = setTimeout(watch, this.gone ? lookAfter.gone : lookAfter.there)
    }
    timer = setTimeout(watch, lookAfter.there)
    return () => {
      removeEventListener('hashchange', onHash)
      scheme.removeEventListener('change', onScheme)
      offReach()
      clearTimeout(timer)
    }
  }

  /** Writes the view into the address, without adding to the history. */
  writeLink(): void {
    const link = toLink($state.snapshot(this.view) as View)
    if (link === this.#written) return
    this.#written = link
    history.replaceState(history.state, '', link === '' ? location.pathname + location.search : `#${link}`)
  }

  /** The address of this view. */
  get link(): string {
    const link = toLink($state.snapshot(this.view) as View)
    return `${location.origin}${location.pathname}${link === '' ? '' : `#${link}`}`
  }

  /** Chooses light or dark, and remembers it where it is not the system's choice. */
  setDark(dark: boolean): void {
    this.dark = dark
    if (dark === matchMedia('(prefers-color-scheme: dark)').matches) localStorage.removeItem(themeKey)
    else localStorage.setItem(themeKey, dark ? 'dark' : 'light')
  }

  /** Loads the model of the view; the page goes on with the old one if that fails. */
  loadModel(): void {
    const { model } = this.view
    this.model.ask(`${model}#${this.returns}`, async (signal, put) => {
      const body = model === '' ? undefined : { model }
      const before = this.model.value?.answer
      for await (const batch of lines<ModelLine>('model', body, signal))
        for (const line of batch)
          if (line.type === 'progress') put({ progress: line, ...(before ? { answer: before } : {}) })
          else if (line.type === 'model') put({ answer: line.model })
    })
  }

  /** A view as a newcomer finds it, on the same model. */
  reset(): void {
    const usual = defaultView()
    const layers = this.spec?.layers
    this.view = { ...usual, model: this.view.model, ...(layers ? { edits: fitted(usual.edits, layers) } : {}) }
  }

  #reached(reachable: boolean): void {
    if (reachable && this.gone) this.returns++
    this.gone = !reachable
  }

  #met(answer: HealthAnswer): void {
    if (this.#instance !== undefined && this.#instance !== answer.instance) this.returns++
    this.#instance = answer.instance
  }
}

/** The page. */
export const app = new App()
