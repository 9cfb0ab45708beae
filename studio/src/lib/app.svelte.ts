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
  #room: string | undefined

  /** The loaded model, or undefined while it loads. */
  get spec(): ModelAnswer | undefined {
    return this.model.value?.answer
  }

  /** The model that the view names is the one that is shown, so that questions may be asked. */
  get ready(): boolean {
    const { spec, model, view } = this
    return spec !== undefined && !model.stale && !model.value?.progress && (view.model === '' || view.model === spec.id)
  }

  /** Starts to follow the address, the theme and the server; returns what stops it. */
  start(): () => void {
    const onHash = () => {
      if (location.hash.slice(1) === this.#written) return
      this.view = fromLink(location.hash)
      this.#written = location.hash.slice(1)
      this.#room = this.view.room
    }
    addEventListener('hashchange', onHash)
    addEventListener('popstate', onHash)
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
      removeEventListener('popstate', onHash)
      scheme.removeEventListener('change', onScheme)
      offReach()
      clearTimeout(timer)
    }
  }

  /** Writes the view into the address; only going to another room is a step that the browser's Back undoes. */
  writeLink(): void {
    const link = toLink($state.snapshot(this.view) as View)
    if (link === this.#written) return
    const address = link === '' ? location.pathname + location.search : `#${link}`
    const moved = this.#room !== undefined && this.#room !== this.view.room
    this.#written = link
    this.#room = this.view.room
    if (moved) history.pushState(null, '', address)
    else history.replaceState(history.state, '', address)
  }

  /** The address of a room with everything else as it is. */
  linkTo(room: string): string {
    return `#${toLink({ ...($state.snapshot(this.view) as View), room })}`
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
    const { room, model, rooms } = this.view
    this.view = { ...usual, room, model, rooms, ...(layers ? { edits: fitted(usual.edits, layers) } : {}) }
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
