/** @file `npm start`: sets the clone up, then opens the studio; with arguments, runs that command instead. */
import { checkNode } from './tools/node-version.mjs'

checkNode()

Promise.all([import('./setup.mjs'), import('./tools/parent.mjs')]).then(async ([{ inRoot, setUpOrExit }, { endWithParent }]) => {
  endWithParent()
  const args = process.argv.slice(2)
  await setUpOrExit({ model: args.length > 0 ? 'try' : 'fetch' })
  // In this very process, so that stdin, stdout, signals and the exit code are the command's own.
  const main = inRoot('dist', 'cli', 'main.js')
  process.argv = [process.argv[0], main, ...(args.length > 0 ? args : ['studio'])]
  // npm goes to the clone's root; paths that the user gives are seen from where the user is.
  if (process.env.npm_lifecycle_event === 'start' && process.env.INIT_CWD) process.chdir(process.env.INIT_CWD)
  const { pathToFileURL } = await import('node:url')
  await import(pathToFileURL(main).href)
})
