"""The run-time side of exported programs: adapters for their inputs, and a loader that checks what runtimes do not."""
