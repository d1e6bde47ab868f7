"""How what a journal holds gets to its store, from the job or, after its death, from another process."""
