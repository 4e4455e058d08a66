"""The hostile-peer suite: attacks on a real node, and what each costs the node and its callers.

    make hostile                     every attack, a table, and hostile-results/results.json
    make hostile ATTACK="ping reset" those whose names begin so; SECONDS=2 shortens each

    scenario.py    what a scenario is, and how one is run and measured: begin here
    callers.py     attacks over gRPC and HTTP/2
    wire.py        HTTP/2 frames as they are, legal or not
    receivers.py   targets that answer as no target should
    dns.py         names that are slow, change, lie or do not exist; resolver/ stands in for DNS
    stage.py       the node, its keys, the known publisher, and what is measured
    known_target.py  the known publisher's own receiver
    attacker.py    the process that attacks, so that its own work slows no measurement
    report.py      the table

A new kind of peer is a module with a tuple `SCENARIOS`, named in `__main__.py`.
"""
