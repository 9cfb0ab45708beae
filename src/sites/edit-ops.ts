/** @file The table of edit ops: what each takes and what it does to the value of a site. */
import type { NDArray } from '../base/types.ts'
import { add, cos, div, expand, maximum, minimum, mul, type Shape, scalar, sin, sqrt, sub, sum, type Tensor } from '../tensor/index.ts'
import type { EditParam } from './edits.ts'
import { prepareLinear } from './linear-op.ts'
import { prepareSae } from './sae-op.ts'

/**
 * What a parameter may be: a number; a vector over the site's last axes; any array that broadcasts against the site; a matrix; a seed; a
 * number for each generated token; the weights of a sparse autoencoder; values of latents by number; a word; yes or no.
 */
export type ParamKind = 'number' | 'vector' | 'array' | 'matrix' | 'seed' | 'schedule' | 'sae' | 'latents' | 'word' | 'flag'

/** One parameter of an edit op. */
export interface ParamRow {
  readonly kind: ParamKind
  readonly doc: string
  /** Used when the parameter is left out; without it the parameter is required, unless `oneOf` names it. */
  readonly otherwise?: number
  /** Words that may be given. */
  readonly words?: readonly string[]
  /** It may be left out, and nothing takes its place. */
  readonly optional?: boolean
}

/** An edit whose parameters are no arrays against the axes of its site: what it feeds, and what it does. */
export interface OwnEdit {
  /** Values by the name under which `apply` gets them; a symbol stands for an axis whose length may change without compiling. */
  readonly inputs: Readonly<Record<string, { readonly array: NDArray; readonly shape: Shape }>>
  /** What of the edit is part of the compiled program. */
  readonly structure: string
  readonly apply: (x: Tensor, p: Readonly<Record<string, Tensor>>) => Tensor
}

/** The place at which an edit is made ready. */
export interface EditPlace {
  /** The edit in a sentence. */
  readonly label: string
  /** Canonical name of the site, and the sizes of its axes without batch and pos. */
  readonly site: string
  readonly sizes: readonly number[]
}

/** One edit op. */
export interface EditOpRow {
  readonly doc: string
  readonly params: Readonly<Record<string, ParamRow>>
  /** The new value. Parameters are traced tensors, so that turning them compiles nothing. */
  readonly apply?: (x: Tensor, p: Readonly<Record<string, Tensor>>) => Tensor
  /** Instead of `apply`, for parameters that are no arrays against the axes of the site. */
  readonly prepare?: (params: Readonly<Record<string, EditParam>>, place: EditPlace) => OwnEdit
  /** At least one of these must be given. */
  readonly oneOf?: readonly string[]
}

const dot = (x: Tensor, y: Tensor) => sum(mul(x, y), [-1], true)
const unit = (v: Tensor) => div(v, sqrt(dot(v, v)))
const filled = (x: Tensor, value: Tensor) => expand(value, x.shape, x)
const at = (p: Readonly<Record<string, Tensor>>, name: string) => p[name] as Tensor
/** scale · vector, times what a schedule says of the position. */
const addend = (p: Readonly<Record<string, Tensor>>) => {
  const moved = mul(at(p, 'vector'), at(p, 'scale'))
  return p.schedule ? mul(moved, p.schedule) : moved
}

const scheduleRow: ParamRow = {
  kind: 'schedule',
  doc: 'factors for the first generated token, the second, …; the last one holds on, and the prompt is left alone',
  optional: true,
}

/** The edit ops, by the name used in edits files. */
export const editOps = {
  add: {
    doc: 'Adds scale · vector.',
    params: {
      vector: { kind: 'array', doc: 'the direction' },
      scale: { kind: 'number', doc: 'factor on it', otherwise: 1 },
      schedule: scheduleRow,
    },
    apply: (x, p) => add(x, addend(p)),
  },
  add_keep_norm: {
    doc: 'Adds scale · vector, then gives the sum the norm that the value had.',
    params: {
      vector: { kind: 'array', doc: 'the direction' },
      scale: { kind: 'number', doc: 'factor on it', otherwise: 1 },
      schedule: scheduleRow,
    },
    apply: (x, p) => {
      const moved = add(x, addend(p))
      // A sum of zero has no direction; it stays zero.
      return mul(moved, sqrt(div(dot(x, x), maximum(dot(moved, moved), scalar(1e-30, x.dtype)))))
    },
  },
  set: {
    doc: 'Replaces the value by a number, vector or array.',
    params: { value: { kind: 'array', doc: 'the new value' } },
    apply: (x, p) => filled(x, at(p, 'value')),
  },
  zero: {
    doc: 'Replaces the value by zeros.',
    params: {},
    apply: (x) => filled(x, scalar(0, x.dtype)),
  },
  mean_ablate: {
    doc: 'Replaces the value by its mean over a corpus.',
    params: { mean: { kind: 'vector', doc: 'the mean' } },
    apply: (x, p) => filled(x, at(p, 'mean')),
  },
  scale: {
    doc: 'Multiplies the value by a factor.',
    params: { factor: { kind: 'array', doc: 'a number, or one for each coordinate' } },
    apply: (x, p) => mul(x, at(p, 'factor')),
  },
  clamp: {
    doc: 'Limits each coordinate.',
    params: { min: { kind: 'array', doc: 'lower limit' }, max: { kind: 'array', doc: 'upper limit' } },
    oneOf: ['min', 'max'],
    apply: (x, p) => {
      const low = p.min ? maximum(x, p.min) : x
      return p.max ? minimum(low, p.max) : low
    },
  },
  project_out: {
    doc: 'Removes the component along a vector.',
    params: { vector: { kind: 'vector', doc: 'the direction; its length does not matter' } },
    apply: (x, p) => {
      const v = unit(at(p, 'vector'))
      return sub(x, mul(dot(x, v), v))
    },
  },
  project_to: {
    doc: 'Sets the component along a vector to a value, leaving the rest.',
    params: {
      vector: { kind: 'vector', doc: 'the direction; its length does not matter' },
      value: { kind: 'number', doc: 'the component along the unit vector' },
    },
    apply: (x, p) => {
      const v = unit(at(p, 'vector'))
      return add(x, mul(sub(at(p, 'value'), dot(x, v)), v))
    },
  },
  project_clamp: {
    doc: 'Keeps the component along a vector within limits, leaving the rest.',
    params: {
      vector: { kind: 'vector', doc: 'the direction; its length does not matter' },
      min: { kind: 'number', doc: 'lower limit of the component along the unit vector', optional: true },
      max: { kind: 'number', doc: 'upper limit', optional: true },
    },
    oneOf: ['min', 'max'],
    apply: (x, p) => {
      const v = unit(at(p, 'vector'))
      const along = dot(x, v)
      const low = p.min ? maximum(along, p.min) : along
      return add(x, mul(sub(p.max ? minimum(low, p.max) : low, along), v))
    },
  },
  rotate: {
    doc: 'Turns the value in the plane of two vectors, from the first towards the second; its norm is kept.',
    params: {
      from: { kind: 'vector', doc: 'first direction of the plane' },
      to: { kind: 'vector', doc: 'second direction of the plane' },
      angle: { kind: 'number', doc: 'angle in radians' },
    },
    apply: (x, p) => {
      const u = unit(at(p, 'from'))
      const w = unit(sub(at(p, 'to'), mul(dot(at(p, 'to'), u), u)))
      const [c, s] = [sub(cos(at(p, 'angle')), 1), sin(at(p, 'angle'))]
      const [a, b] = [dot(x, u), dot(x, w)]
      return add(x, add(mul(sub(mul(a, c), mul(b, s)), u), mul(add(mul(b, c), mul(a, s)), w)))
    },
  },
  affine: {
    doc: 'scale · value + shift, coordinate by coordinate.',
    params: {
      scale: { kind: 'array', doc: 'factor', otherwise: 1 },
      shift: { kind: 'array', doc: 'added after', otherwise: 0 },
    },
    oneOf: ['scale', 'shift'],
    apply: (x, p) => add(mul(x, at(p, 'scale')), at(p, 'shift')),
  },
  linear: {
    doc: 'value + scale · ((value − center) · down · up + shift): a linear map by two thin factors.',
    params: {
      down: { kind: 'matrix', doc: '[width, rank]' },
      up: { kind: 'matrix', doc: '[rank, width]' },
      center: { kind: 'vector', doc: 'taken off before', optional: true },
      shift: { kind: 'vector', doc: 'added', optional: true },
      scale: { kind: 'number', doc: 'strength: 0 leaves the value, 1 is the map', otherwise: 1 },
    },
    prepare: prepareLinear,
  },
  replace: {
    doc: 'Replaces the value by a recorded activation, position by position; positions beyond the record are left alone.',
    params: { value: { kind: 'array', doc: 'the record, [pos, …] or [batch, pos, …] as it was returned' } },
    apply: (x, p) => filled(x, at(p, 'value')),
  },
  noise: {
    doc: 'Adds Gaussian noise; the same seed gives the same noise at the same row, position and coordinate.',
    params: { std: { kind: 'number', doc: 'standard deviation' }, seed: { kind: 'seed', doc: 'integer', otherwise: 0 } },
    apply: (x, p) => add(x, mul(at(p, 'seed'), at(p, 'std'))),
  },
  sae: {
    doc: 'Encodes the value by a sparse autoencoder, changes latents, and decodes; without latents, replaces the value by its reconstruction.',
    params: {
      weights: { kind: 'sae', doc: 'the autoencoder; in a file, { "file": a folder or file that holds one }' },
      latents: {
        kind: 'latents',
        doc: 'values by the number of the latent, { "123": 5 }; for ablate a list of numbers, too',
        optional: true,
      },
      mode: {
        kind: 'word',
        doc: 'add to the activation, clamp it to the value, scale it by the value, or ablate it (default: add)',
        words: ['add', 'clamp', 'scale', 'ablate'],
        optional: true,
      },
      error: {
        kind: 'flag',
        doc: 'keep what the autoencoder does not reconstruct (default: true with latents, false without)',
        optional: true,
      },
    },
    prepare: prepareSae,
  },
} as const satisfies Readonly<Record<string, EditOpRow>>

/** Names of edit ops. */
export type EditOpName = keyof typeof editOps
