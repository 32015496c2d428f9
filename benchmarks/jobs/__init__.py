"""The jobs that are measured: one module each, started as a process of its own."""
