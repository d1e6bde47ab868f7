"""The parts of `autogen-team run`: a small process starts the job as its user would, and a third one keeps its run.

- `target`: the command line of the job, and its name.
- `supervise`: the supervisor: starts the keeper and the job, passes signals on, waits; loads no MLflow.
- `keeping`: starts the keeper, tells it of the job, and waits for it.
- `keeper`: the process that opens and closes the run, also if the job or the supervisor dies.
- `ending`: the status and the reason of a run, from how its job has ended.
- `forwarding`, `terminal`, `relay`: signals, keys and bytes, unchanged.
- `transcript`: the output as lines of text, in a file beside the log of the run.
- `bootstrap`: what Python loads at its start in the process of the job.
- `inside`: the context in the process of the job, once the job needs it.
- `asking`, `answering`: the two ends of the socket between the job and the supervisor.
- `wire`: the messages.
"""
