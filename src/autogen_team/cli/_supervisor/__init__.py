"""The parts of `autogen-team run`: a small process starts the job as its child, and stays until the job has ended.

- `supervise`: starts the child, forwards signals, waits; does not import mlflow if the child closes its run itself.
- `forwarding`: passes signals on to a child process.
- `terminal`: a pseudo-terminal for a child whose output is kept.
- `relay`: passes bytes on unchanged, and shows them to a transcript.
- `transcript`: the output as lines of text, in a file beside the log of the run.
- `wire`: the messages between the two processes.
- `inside`: the child: the context, the run, and the target inside it.
- `target`: what is run: a script, a module, or any command.
- `exits`: calls the exit handlers of the target while its run is open.
- `threads`: waits for threads and tasks that the target has left running.
- `aftermath`: what is done for a child that died without closing its run.
"""
