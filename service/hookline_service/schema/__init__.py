"""JSON Schemas of event types: data is checked against them in bounded time and memory.

Reading order:
      cost              an upper bound of what a schema may cost, from its text
      evaluation        compiles, checks and lists violations; also the evaluator process's program
      process           the evaluator process: started, limited, killed and shared between tenants
      checker           decides where a check runs, and combines the answers
"""
