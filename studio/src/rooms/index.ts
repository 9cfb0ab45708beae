/** @file The rooms of the studio; a new one is a row here and a folder beside. */
import type { Component } from 'svelte'
import Look from './look/Look.svelte'

/** One room. */
export interface Room {
  readonly slug: string
  readonly title: string
  readonly component: Component
}

/** All rooms, in the order of the navigation. */
export const rooms: readonly Room[] = [{ slug: 'look', title: 'Look & steer', component: Look }]
