"""Implements `autogen-team run`: a small process supervises the job, and a third process, the keeper, keeps its run.

- `target`: the command line of the job, and its name.
- `supervise`: the supervisor: starts the keeper and the job, forwards signals, waits; does not load MLflow.
- `keeping`: starts the keeper, sends it facts about the job, and waits for it.
- `keeper`: the process that opens and closes the run, even if the job or the supervisor dies.
- `ending`: the status and the reason of a run, derived from how its job ended.
- `forwarding`, `terminal`, `relay`: pass on signals, keys and bytes unchanged.
- `transcript`: the output as lines of text, in a file beside the log of the run.
- `bootstrap`: the module that Python loads at startup in the process of the job.
- `inside`: the context in the process of the job, once the job needs it.
- `asking`, `answering`: the two ends of the socket between the job and the supervisor.
- `wire`: the messages.
"""
