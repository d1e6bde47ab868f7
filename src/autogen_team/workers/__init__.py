"""The context in the workers of common engines: one module per engine, imported on demand.

Pools of the standard library need none of these modules. Use `GlobalContext.initializer()` for pools,
`GlobalContext.bind(fn)` for any tool that calls a function elsewhere, and `GlobalContext.worker_env()` for any child
process.
"""
