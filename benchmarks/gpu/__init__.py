"""The whole GPU question in one command: is what peftkit computes on this card right, how fast is it, and why.

    python -m benchmarks.gpu [--smoke] [--output FOLDER] [--only PART,…] [--budget SECONDS]

It needs no network: bases have random weights in their true shapes, and documents have random tokens in the lengths of
real ones. Each job is a process of its own, so that a part that fails, even with a fault of the device, leaves the
others as they are. `--smoke` runs the same code with tiny shapes, on a CPU too.
"""
