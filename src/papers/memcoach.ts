/** @file MemCoach (arXiv:2602.21877): does the mean difference between a teacher's and a student's advice make the student's advice useful? */
import { RandomStream } from '../nn/index.ts'
import type { Model } from '../run/index.ts'
import {
  type AnswerPool,
  answerLosses,
  SteeringVector,
  type SteerOptions,
  type TeacherStudentContrast,
  teacherStudent,
  tuneStrength,
} from '../steer/index.ts'
import { type Advice, advise, answeredPairs, measures, type Outcome, outcomeOf, teacherTurns } from './memcoach-loop.ts'
import { predictorOf } from './memcoach-predictor.ts'
import { definePaper, type Figure, type Metrics, type Repeat, type Table } from './paper.ts'
import type { Study } from './study.ts'
import {
  actionName,
  actions,
  attributes,
  type CoachWorld,
  coachModel,
  edited,
  endToken,
  memorability,
  type Photo,
  scene,
  studentPrompt,
  teacherPrompt,
} from './toys/photos.ts'

const ratios = [0.1, 0.25, 0.5] as const
const strongest = 0.5
const pools: readonly AnswerPool[] = ['answer', 'sequence']
const m = (name: string) => (r: Metrics) => r[name] as number
const less = (a: string, b: string) => (r: Metrics) => (r[a] as number) - (r[b] as number)
const steeredName = (pool: AnswerPool, layer: number, ratio: number) => `steered, ${pool}, layer ${layer}, ρ ${ratio}`
const [ours, papers] = pools.map((p) => steeredName(p, 1, strongest)) as [string, string]
const ir = (condition: string, world = 'tokens') => `${world}: IR, ${condition}`

/** The reproduction. */
export const paper = definePaper({
  slug: 'memcoach',
  title: 'How to Take a Memorable Picture? Empowering Users with Actionable Feedback',
  authors: 'Laiti, Talon, Staiano, Ricci (Trento, Pisa, FBK), CVPR 2026',
  source: '2602.21877',
  family: 'steer',
  question:
    'Does the difference between the advice of a teacher who saw the better photo and the advice given out of habit make advice useful?',
  claim: {
    text: 'Adding it lifts the share of photos that carried-out advice makes more memorable by at least 0.15.',
    metric: 'improvement rate (strict) above zero-shot, layer 1, strength half the length of the stream',
    threshold: 0.15,
  },
  ours: less(ir(ours), ir('zero-shot')),
  baselines: {
    'no edit': (r) => -(r[ir('zero-shot')] as number),
    'whole sequence pooled, as in the paper': less(ir(papers), ir('zero-shot')),
    'teacher oracle': less(ir('teacher'), ir('zero-shot')),
  },
  controls: {
    'random direction': less(ir('random'), ir('zero-shot')),
    'sign turned': less(ir('sign turned, answer'), ir('zero-shot')),
    'hint of a random photo of the scene': less(ir('hint of a random photo'), ir('zero-shot')),
  },
  gates: [
    {
      name: 'zero-shot',
      role: 'setting',
      text: 'Advice out of habit helps about every second photo.',
      of: m(ir('zero-shot')),
      atLeast: 0.4,
      atMost: 0.6,
    },
    { name: 'teacher', role: 'setting', text: 'The teacher sees what differs.', of: m(ir('teacher')), atLeast: 0.93 },
    {
      name: 'lift',
      role: 'claim',
      text: 'Answers pooled: the lift over zero-shot at ρ = 0.5, layer 1.',
      of: less(ir(ours), ir('zero-shot')),
      atLeast: 0.15,
    },
    {
      name: 'lift, paper’s pooling',
      role: 'claim',
      text: 'Whole sequences pooled: the lift over zero-shot at ρ = 0.5, layer 1.',
      of: less(ir(papers), ir('zero-shot')),
      atLeast: 0.15,
    },
    {
      name: 'rises',
      role: 'claim',
      text: 'The improvement rate rises over ρ of 0, 0.1, 0.25, 0.5 (smallest step, both poolings, layer 1).',
      of: m('tokens: smallest step of IR'),
      atLeast: 0,
    },
    {
      name: 'validity',
      role: 'control',
      text: 'Steered answers stay lists of actions (the less valid pooling).',
      of: (r) => Math.min(r[`tokens: validity, ${ours}`] as number, r[`tokens: validity, ${papers}`] as number),
      atLeast: 0.98,
    },
    {
      name: 'length',
      role: 'control',
      text: 'Steered lists stay short (the longer pooling), actions.',
      of: (r) => Math.max(r[`tokens: actions, ${ours}`] as number, r[`tokens: actions, ${papers}`] as number),
      atMost: 4.5,
    },
    {
      name: 'sign',
      role: 'control',
      text: 'The vector subtracted makes advice worse (the weaker pooling, against zero-shot).',
      of: (r) => Math.max(...pools.map((p) => (r[ir(`sign turned, ${p}`)] as number) - (r[ir('zero-shot')] as number))),
      atMost: -0.15,
    },
    {
      name: 'random',
      role: 'control',
      text: 'Random directions of equal length move the improvement rate by at most 0.08.',
      of: (r) => Math.abs((r[ir('random')] as number) - (r[ir('zero-shot')] as number)),
      atMost: 0.08,
    },
  ],
  data: 'Portraits of five attributes in four levels, each attribute as two tokens that are wrong in 5 % of cases; each photo of a scene draws 40 % of the attributes anew, and 300 scenes of six make the vector, 300 others judge it, 150 more choose its strength. The model, a Llama layout of four blocks and width 48, has learnt to tell what differs between two photos, and to give advice that looks at no photo. A second one reads the same photos rendered to 32 × 32 pixels through a vision tower of two blocks and a projector.',
  scale:
    'The paper steers InternVL3.5-8B and three others on 10,000 portraits, carries advice out with FLUX.1-Kontext, and judges it by a predictor of memorability on SigLIP features.',
  notReproduced: [
    'multimodal models of billions of parameters',
    'the image editor and the predictor trained on LaMem',
    'LoRA',
    'the user studies',
  ],
  notes: [
    'The world of tokens carries all gates; that of pixels is shown beside it, in a table of its own.',
    'The card does not say how the photos of a scene differ. Photos that share nothing made the teacher’s lists longer than the student’s, and steering then shortened lists instead of changing them; here 40 % of the attributes are drawn anew, which gives lists of about equal length. This was chosen after such a run.',
    'The mean of contrasts and the difference of means are the same vector when both sides have as many answers, so that the paper’s ablation between the two must have another cause.',
    'Counting ties as improvements, as the paper’s text does, makes the empty edit perfect.',
    'Where advice out of habit never repeats an action, what an answer has said already keeps it from being said again, and the same recipe may point the other way: the scan over strengths on other scenes includes those below zero and says so.',
  ],
  model: 'trained here: Llama layout, 4 blocks, width 48, photos as tokens and as pixels',
  seeds: [0, 1, 2],
  revision: 1,
  repeat,
})

/** Photos in scenes, and prompts made of them once, so that all conditions see the same noise. */
interface Shoots {
  readonly photos: readonly Photo[]
  readonly student: readonly ReturnType<typeof studentPrompt>[]
  readonly teacher: readonly ReturnType<typeof studentPrompt>[]
  /** The teacher's prompt with another photo of the scene than the best. */
  readonly anyPhoto: readonly ReturnType<typeof studentPrompt>[]
}

function shoots(study: Study, { form }: CoachWorld, name: string, count: number): Shoots {
  const random = RandomStream.named(study.seed, `${form}: ${name}`)
  const scenes = Array.from({ length: count }, () => scene(random))
  const photos = scenes.map((s) => s[0] as Photo)
  const better = (s: Photo[], at: number) => teacherPrompt(form, s[0] as Photo, s.at(at) as Photo, random)
  return {
    photos,
    student: photos.map((p) => studentPrompt(form, p, random)),
    teacher: scenes.map((s) => better(s, -1)),
    anyPhoto: scenes.map((s) => better(s, 1 + random.below(s.length - 1))),
  }
}

/** A world at work: its model, its scenes, and the vectors of both poolings. */
interface World {
  readonly name: string
  readonly model: Model
  readonly test: Shoots
  readonly heldOut: Shoots
  readonly vectors: ReadonlyMap<AnswerPool, TeacherStudentContrast>
  /** The contrast when the teacher was shown any other photo of the scene. */
  readonly anyPhoto: TeacherStudentContrast
  readonly layers: readonly number[]
}

const siteOf = (layer: number) => `resid_post.${layer}`

async function worldOf(study: Study, name: string, world: CoachWorld, count: number, layers: readonly number[]): Promise<World> {
  const model = await study.trained(name, coachModel(study.seed, world))
  const train = shoots(study, world, 'train', count)
  const [teacher, student, any] = [
    await advise(model, train.teacher, study),
    await advise(model, train.student, study),
    await advise(model, train.anyPhoto, study),
  ]
  const options = { site: layers.map(siteOf), closing: [endToken], ...study.work }
  const vectors = new Map<AnswerPool, TeacherStudentContrast>()
  const pairs = answeredPairs(train.student, teacher, student)
  for (const pool of pools) vectors.set(pool, await teacherStudent(model, { ...options, pairs, pool }))
  const anyPhoto = await teacherStudent(model, { ...options, pairs: answeredPairs(train.student, any, student) })
  return {
    name,
    model,
    vectors,
    anyPhoto,
    layers,
    test: shoots(study, world, 'test', count),
    heldOut: shoots(study, world, 'held out', Math.ceil(count / 2)),
  }
}

/** A vector at a layer, as long as a share of the stream there. */
function steered(
  model: Model,
  { vector, norms }: TeacherStudentContrast,
  layer: number,
  ratio: number,
  where?: SteerOptions['where'],
): Model {
  const site = siteOf(layer)
  return model.with(vector.edits({ sites: [site], scale: strengthOf(vector, norms, layer, ratio), ...(where ? { where } : {}) }))
}

const strengthOf = (vector: SteeringVector, norms: ReadonlyMap<string, number>, layer: number, ratio: number) =>
  (ratio * (norms.get(siteOf(layer)) as number)) / (vector.norms.get(siteOf(layer)) as number)

/** A condition: a name, and the advice that it gives on the photos of the test. */
type Condition = readonly [name: string, advice: () => Promise<Advice[]>]

function conditionsOf(world: World, study: Study): Condition[] {
  const { model, test, vectors } = world
  const say = (name: string, steeredModel: () => Model): Condition => [name, () => advise(steeredModel(), test.student, study)]
  const of = (pool: AnswerPool) => vectors.get(pool) as TeacherStudentContrast
  const random = RandomStream.named(study.seed, 'random directions')
  const randomContrast = (): TeacherStudentContrast => {
    const { vector, ...rest } = of('answer')
    const directions = vector.sites.map((s) => [s, Float64Array.from(vector.at(s), () => random.normal())] as const)
    return { ...rest, vector: new SteeringVector(directions, { ...vector.record, method: 'random' }) }
  }
  return [
    ['no edit', async () => test.photos.map(() => ({ list: [], valid: true }))],
    say('zero-shot', () => model),
    ['teacher', () => advise(model, test.teacher, study)],
    ...pools.flatMap((pool) =>
      world.layers.flatMap((layer) => ratios.map((r) => say(steeredName(pool, layer, r), () => steered(model, of(pool), layer, r)))),
    ),
    say('generated positions only', () => steered(model, of('answer'), 1, strongest, { phase: 'generated' })),
    ...pools.map((pool) => say(`sign turned, ${pool}`, () => steered(model, of(pool), 1, -strongest))),
    say('hint of a random photo', () => steered(model, world.anyPhoto, 1, strongest)),
    ...Array.from({ length: study.size(4, 1) }, (_, i) => say(`random ${i + 1}`, () => steered(model, randomContrast(), 1, strongest))),
  ]
}

interface Measured {
  readonly outcomes: Readonly<Record<string, Outcome>>
  readonly advice: Readonly<Record<string, readonly Advice[]>>
  readonly warnings: readonly string[]
  readonly perplexity: Readonly<Record<string, number>>
  readonly tuned: { readonly layer: number; readonly ratio: number; readonly score: number; readonly warnings: readonly string[] }
  readonly facts: Readonly<Record<string, number>>
  /** What the second judge says, where photos are pixels. */
  readonly predictor: Readonly<Record<string, number>>
}

async function measured(world: World, study: Study): Promise<Measured> {
  const { model, test, heldOut, vectors, name } = world
  const advice: Record<string, Advice[]> = {}
  const conditions = conditionsOf(world, study)
  for (const [condition, write] of conditions) {
    advice[condition] = await write()
    study.onProgress?.({ task: `${name}: ${condition}`, done: Object.keys(advice).length, total: conditions.length, unit: 'conditions' })
  }
  const contrast = vectors.get('answer') as TeacherStudentContrast
  const scan = study.size([-0.5, -0.25, 0.25, 0.5], [-0.5, 0.5])
  const tuned = await tuneStrength(model, contrast.vector, {
    strengths: Object.fromEntries(world.layers.map((l) => [siteOf(l), scan.map((r) => strengthOf(contrast.vector, contrast.norms, l, r))])),
    score: async (steeredModel) => outcomeOf(heldOut.photos, await advise(steeredModel, heldOut.student, study)).improved,
    ...study.work,
  })
  const layer = Number(tuned.best.site.split('.').at(-1))
  const ratio = scan.find((r) => strengthOf(contrast.vector, contrast.norms, layer, r) === tuned.best.strength) as number
  advice.tuned = await advise(steered(model, contrast, layer, ratio), test.student, study)
  const right = teacherTurns(answeredPairs(test.student, advice.teacher as Advice[], advice.teacher as Advice[]))
  const perplexity: Record<string, number> = {}
  for (const [condition, of] of [
    ['zero-shot', model],
    ...pools.map((p) => [steeredName(p, 1, strongest), steered(model, vectors.get(p) as TeacherStudentContrast, 1, strongest)] as const),
  ] as const) {
    const losses = (await answerLosses(of, right, { closing: [endToken] })).flatMap((l) => [...l])
    perplexity[condition] = Math.exp(losses.reduce((s, x) => s + x, 0) / losses.length)
  }
  return {
    advice,
    predictor: name === 'pixels' ? await secondJudge(world, study, advice) : {},
    outcomes: Object.fromEntries(Object.entries(advice).map(([c, a]) => [c, outcomeOf(test.photos, a)])),
    warnings: pools.flatMap((p) => (vectors.get(p) as TeacherStudentContrast).warnings.map((w) => `${p}: ${w}`)),
    perplexity,
    tuned: { layer, ratio, score: tuned.best.score, warnings: tuned.warnings },
    facts: {
      ...Object.fromEntries(
        pools.map((p) => {
          const { vector, norms } = vectors.get(p) as TeacherStudentContrast
          return [`α at ρ ${strongest}, ${p}`, strengthOf(vector, norms, 1, strongest)]
        }),
      ),
      'cosine of the poolings': contrast.vector.cosine((vectors.get('sequence') as TeacherStudentContrast).vector, siteOf(1)),
      'teacher’s actions': contrast.lengths.teacher,
      'student’s actions': contrast.lengths.student,
    },
  }
}

/** What a predictor trained on the coach's own vision tower says of the photos that its advice makes. */
async function secondJudge({ model, test }: World, study: Study, advice: Readonly<Record<string, readonly Advice[]>>) {
  const predictor = await predictorOf(model, study)
  const out: Record<string, number> = { 'rank correlation with M': predictor.correlation }
  for (const condition of ['zero-shot', 'teacher', ours, papers])
    out[`IR by the predictor, ${condition}`] = await predictor.improved(test.photos, advice[condition] as readonly Advice[])
  return out
}

async function repeat(study: Study): Promise<Repeat> {
  const metrics: Record<string, number> = {}
  const tables: Table[] = []
  const figures: Figure[] = []
  const worlds: readonly (readonly [string, CoachWorld, number, readonly number[]])[] = [
    ['tokens', { form: 'tokens', repeats: true, steps: study.size(700, 110) }, study.size(300, 60), study.size([1, 2], [1])],
    ...study.size(
      [
        ['no repeats', { form: 'tokens', repeats: false, steps: 400 }, 300, [1]] as const,
        ['pixels', { form: 'pixels', repeats: true, steps: 500 }, 150, [1]] as const,
      ],
      [],
    ),
  ]
  for (const [name, settings, count, layers] of worlds) {
    const found = await study.step(`measure ${name}`, { ...settings, count, layers: [...layers] }, async () =>
      measured(await worldOf(study, name, settings, count, layers), study),
    )
    Object.assign(metrics, metricsOf(name, found))
    tables.push(tableOf(name, settings, found))
    if (name === 'tokens') {
      const test = shoots(study, settings, 'test', count)
      tables.push(examplesOf(test.photos, found))
      figures.push(curveOf(found, layers), wordsOf(found))
    }
  }
  return { metrics, tables, figures }
}

function metricsOf(name: string, { outcomes, perplexity, tuned, facts, predictor }: Measured): Record<string, number> {
  const out: Record<string, number> = {}
  const random = Object.keys(outcomes).filter((c) => /^random \d/.test(c))
  for (const [condition, o] of Object.entries(outcomes)) {
    out[ir(condition, name)] = o.improved
    out[`${name}: RM, ${condition}`] = o.gain
    out[`${name}: validity, ${condition}`] = o.validity
    out[`${name}: actions, ${condition}`] = o.length
  }
  out[ir('random', name)] = random.reduce((s, c) => s + (outcomes[c] as Outcome).improved, 0) / random.length
  out[`${name}: smallest step of IR`] = Math.min(
    ...pools.flatMap((p) => {
      const curve = ['zero-shot', ...ratios.map((r) => steeredName(p, 1, r))].map((c) => (outcomes[c] as Outcome).improved)
      return curve.slice(1).map((v, i) => v - (curve[i] as number))
    }),
  )
  for (const [condition, v] of Object.entries(perplexity)) out[`${name}: perplexity of the teacher’s advice, ${condition}`] = v
  out[`${name}: tuned ρ`] = tuned.ratio
  for (const [fact, v] of Object.entries({ ...facts, ...predictor })) out[`${name}: ${fact}`] = v
  return out
}

function tableOf(name: string, { form, repeats }: CoachWorld, { outcomes, warnings, tuned }: Measured): Table {
  const world = `photos as ${form}${repeats ? '' : ', habits that never repeat an action'}`
  return {
    name,
    title: `The closed loop: ${world} (first seed)`,
    columns: ['condition', ...Object.values(measures)],
    rows: Object.entries(outcomes).map(([condition, o]) => [condition, ...Object.keys(measures).map((k) => o[k as keyof Outcome])]),
    note: [
      `Scenes that made no vector choose layer ${tuned.layer} and ρ ${tuned.ratio} (IR ${tuned.score.toFixed(2)} there).`,
      ...tuned.warnings,
      ...warnings,
    ].join(' '),
  }
}

const described = (photo: Photo) => attributes.map(({ name }, i) => `${name} ${photo[i]}`).join(', ')
const said = ({ list }: Advice) => list.map(actionName).join('; ')

function examplesOf(photos: readonly Photo[], { advice }: Measured): Table {
  const score = (p: Photo, a: Advice) => memorability(edited(p, a.list))
  return {
    name: 'examples',
    title: 'Photos before and after (first seed)',
    columns: ['photo', 'M before', 'zero-shot advice', 'M after', 'steered advice', 'M after, steered'],
    rows: photos.slice(0, 6).map((p, i) => {
      const [plain, better] = [advice['zero-shot']?.[i], advice[ours]?.[i]] as [Advice, Advice]
      return [described(p), memorability(p), said(plain), score(p, plain), said(better), score(p, better)]
    }),
  }
}

function curveOf({ outcomes }: Measured, layers: readonly number[]): Figure {
  const at = (c: string) => (outcomes[c] as Outcome).improved
  const data = pools.flatMap((pool) =>
    layers.flatMap((layer) => {
      const series = `${pool}, layer ${layer}`
      const point = (ratio: number, condition: string) => ({ ratio, value: at(condition), series })
      return [
        ...(layer === 1 ? [point(-strongest, `sign turned, ${pool}`)] : []),
        point(0, 'zero-shot'),
        ...ratios.map((r) => point(r, steeredName(pool, layer, r))),
      ]
    }),
  )
  return {
    name: 'strength',
    title: 'Improvement rate by strength',
    caption: `Share of photos that advice makes more memorable; the teacher reaches ${at('teacher').toFixed(2)}.`,
    kind: 'line',
    x: { key: 'ratio', label: 'ρ, length of the vector over that of the stream' },
    y: { key: 'value', label: 'improvement rate (strict)' },
    series: { key: 'series', label: 'pooling' },
    data,
  }
}

function wordsOf({ advice }: Measured): Figure {
  return {
    name: 'actions',
    title: 'What is advised',
    caption: 'Share of each action among all that is advised.',
    kind: 'bar',
    x: { key: 'action', label: 'action', domain: actions.map(actionName) },
    y: { key: 'share', label: 'share' },
    series: { key: 'who', label: 'by whom' },
    data: (['zero-shot', 'teacher', ours] as const).flatMap((who) => {
      const all = (advice[who] ?? []).flatMap((a) => a.list)
      return actions.map((a) => ({ action: actionName(a), who, share: all.filter((t) => t === a).length / all.length }))
    }),
  }
}
