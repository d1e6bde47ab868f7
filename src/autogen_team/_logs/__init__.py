"""The logging engine: sinks, the bridge from the standard library, rendering and the logs of runs."""
