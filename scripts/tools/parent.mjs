/** @file A script of npm ends with it: the shell between them does not hand on a polite kill. */

/** When the process that started us is gone, sends this one a SIGTERM, once. */
export function endWithParent() {
  if (!process.env.npm_lifecycle_event) return
  const parent = process.ppid
  const watch = setInterval(() => {
    if (process.ppid === parent) return
    clearInterval(watch)
    process.kill(process.pid, 'SIGTERM')
  }, 300)
  watch.unref()
}
