/** Its path, where there is one; CHROMIUM names another. */
export const chromiumPath: string | undefined
/** Without a screen, and asking nothing of the network by itself. */
export const chromiumFlags: string[]
