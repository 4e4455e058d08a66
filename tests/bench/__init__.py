"""What Hookline costs: real processes, real gRPC, real Postgres, a lean receiver of its own.

`make bench` prints one table and writes it as JSON; `make bench SCENARIO=1` runs one. Latency
counts from the moment an event was meant to be sent. Figures are medians of rounds; no test asserts
any.
What each means, and what was measured: docs/performance.md. Read in this order:

    scenario                             what a scenario is
    throughput, scale, trouble           the twelve of them
    stage                                a deployment, and the meters on it
    measure                              figures from meters
    floor                                what the unavoidable costs
    publisher, receiver, floor_load      processes of their own
    report                               the table and the JSON
"""
