/** @file Says so when Node is too old. Written without newer syntax, so that an old Node gets as far as the sentence. */

/** The built package runs on any Node 20; what builds the studio and runs the tests wants this much. */
const wanted = '20.13.0'

/** Ends the process when Node is older than that. */
export function checkNode() {
  const own = process.versions.node.split('.').map(Number)
  const least = wanted.split('.').map(Number)
  const differs = least.findIndex((part, i) => part !== own[i])
  if (differs < 0 || own[differs] > least[differs]) return
  console.error(`actlens needs Node ${wanted} or newer, but this is Node ${process.versions.node}. Install a newer Node and try again.`)
  process.exit(1)
}
