"""What Hookline costs: real processes, real gRPC, real Postgres, a lean receiver of its own.

`make bench` prints one table and writes it as JSON; `make bench SCENARIO=1` runs one. Load is open
loop: latency counts from the intended send time. Figures are medians of rounds. No test asserts any.
"""
