"""The context in the workers of the engines that people use: a module for each, imported when it is asked for.

Pools of the standard library need none of them: `GlobalContext.initializer()` is made for them,
`GlobalContext.bind(fn)` for everything that calls a function somewhere, `GlobalContext.worker_env()` for any child
process.
"""
