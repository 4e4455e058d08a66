"""Benchmarks of Hookline: real processes, real gRPC, real Postgres, a lightweight receiver.

`make bench` prints one table and writes it as JSON; `make bench SCENARIO=1` runs one scenario.
Latency counts from the scheduled time of an event. Figures are medians of rounds; no test asserts
one. docs/performance.md defines the figures and has results. In reading order:

    scenario                             the type of a scenario
    throughput, scale, trouble           the scenarios
    stage                                a deployment with its meters
    measure                              figures from meters
    floor                                the cost of the unavoidable parts
    publisher, receiver, floor_load      separate processes
    report                               the table and the JSON
"""
