"""What `autogen-team run` is made of: a small process that starts the job as its child, and stays until it has ended.

- `supervise`: starts the child, forwards signals, waits; loads no mlflow as long as the child ends in good order.
- `terminal`: a terminal for a child whose output is kept.
- `relay`: passes bytes on, as they are, and shows them to a transcript.
- `transcript`: the output as lines of text, in a file beside the log of the run.
- `wire`: what the two processes say to each other.
- `inside`: the child: the context, the run, and in it the target.
- `target`: what is run: a script, a module, or any command.
- `threads`: waiting for what the target has left at work.
- `aftermath`: what is done for a child that died without closing its run.
"""
