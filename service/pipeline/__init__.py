"""The path of an event.

To be read in this order:

`publish` (with `catalog`, `matching` and `quota`) stores events and promises deliveries;
`ownership` says who sends them; `lanes` holds what is due (`key_order`: of an ordered
subscription), `refill` fetches it; `deliver` sends; `record` writes what came of it. `changes`
hears what others decided, `notify` carries word between nodes, `replay`, `consent` and `trial` are
the operator's hands, `telling` and `pulse` say what happens and what is, and `upkeep` keeps the
house. No step looks back: publishing knows nothing of HTTP, delivering nothing of SQL.
"""
