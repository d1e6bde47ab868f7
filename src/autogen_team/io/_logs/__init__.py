"""The logging engine: sinks, the bridge from the standard library, rendering, the log of a run."""
