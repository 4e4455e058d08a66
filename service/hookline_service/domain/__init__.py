"""The words of the engine as values and pure functions: standard library only, no clock, no I/O."""
