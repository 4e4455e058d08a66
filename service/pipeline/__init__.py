"""The path of an event, file by file, in the order in which to read it.

    publish             validate, match in memory, store in a group commit, hand over
      catalog           is its type accepted, and its data right
      matching          which subscriptions it goes to
      index_cache       the tenants' indexes in memory, up to so many bytes
      quota             how much its tenant may have pending
      publish_queue     which call is stored next
      group             calls that share one commit
      commit            one group's commit, and what it may meet
      contended         tenants whose rows another transaction has locked, apart from the others
      hand_off          what a group needs of its node, and where its deliveries go
    ownership           which buckets this node owns, and until when it may act on that
    clock               durations by this node, instants by the database
    lanes               what is due, in memory; how good a copy of the hot table that is
      lane              the queue of one subscription, and its target's health
      sending, turns    who may send now, and who is next
      shares            how much of the node's memory each may take
      waiting, timers   what waits for its time
      lane_views        how they stand, for an operator
    sweep               which lanes lack something that is due, however word was lost
    refill, intake      what fills them from the hot table
      refill_queue      whose lane is read next
      key_order         what an ordered lane knows of its keys
      ordered           how it is filled: of each key the earliest, alone
    targets             what lanes must know of their subscriptions
    deliver             sign, send
    record              what came of it, many outcomes in one statement
      gathering         which outcomes share a statement, and how long they wait
      setbacks          what keeps a batch from being written, and how long it waits
      telling           what is told of them
    changes             what others decided: pauses, cancels, retries
    notify              word between nodes; it only hastens what polling finds
    replay, trial       an operator's hands on a delivery; one event to one subscription
    consent             whether a target wants to be sent to
    audit_sealer        signs the head of the audit log's chain
    upkeep              the chores of the house
    pulse               what a node is, read once a second

No step looks back: publishing knows nothing of HTTP, delivering nothing of SQL.
"""
