import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import { it } from 'vitest'
import * as run from '../src/run/index.ts'
import { validate } from '../src/run/validate.ts'
const lines: string[] = []
for (const root of (process.env.ROOTS ?? '/work/shared/goldens').split(':')) for (const name of readdirSync(root)) {
  const folder = `${root}/${name}`
  if (!existsSync(`${folder}/golden.safetensors`) || !existsSync(`${folder}/config.json`)) continue
  it(name, async () => {
    let line = name
    try {
      const model = await run.load(folder, { threads: 2 })
      const r: any = await validate(model, folder, {})
      line += ` passed ${r.passed} failed ${r.failed} notChecked ${r.notChecked} ` + JSON.stringify(r.checks.filter((c: any) => c.pass === false || c.result !== undefined && c.result !== 'passed' || c.passed === false || c.reason).slice(0, 6))
    } catch (e) { line += ' ERROR ' + (e as Error).message.slice(0, 200) }
    lines.push(line); writeFileSync('/tmp/validate.txt', lines.join('\n'))
  }, 120000)
}
