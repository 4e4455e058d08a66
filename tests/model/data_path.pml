/* The data path of Hookline: publishing, leases, sending, recording, and a failover that loses the end of the log.
 *
 * docs/model.md maps its actions to files and its assertions to the invariants. `make model` has Spin explore every interleaving,
 * and then those of each mutant (-D NO_EPOCH and the others below), which must break an assertion.
 *
 * Two nodes, one tenant with one subscription, one bucket, one publish call of one event, which runs on node 0. An action is one
 * statement of Postgres, or one step of a node. A node that is frozen is one that takes no step. What is checked is safety: that
 * what is pending is found in time is for the tests.
 */
#define NODES   2
#define VACANT  NODES
#define PUBLISHER 0
#define PRIMARY 0
#define STANDBY 1

/* ----------------------------------------------------------------- what Postgres holds: the primary's copy, the standby's */
typedef Copy {
    byte epoch;                 /* of the tenant; raised by each change of its subscription */
    bool subscribed;            /* whether the subscription is live */
    byte stored;                /* how many events of the call there are */
    bool pending;               /* the row of its delivery in the hot table */
    byte version;               /* of that row; raised by each change */
    bool registered[NODES];     /* the node's row is there */
    byte owner = VACANT         /* of the bucket */
};
Copy db[2];
bool history;                   /* the promoted copy has another */
bool lease[NODES];              /* the row's lease_until is still to come */
bool in_server;          /* the publish statement of a call has not run yet */

/* ----------------------------------------------------------------------------------------------- what a node has in memory */
#define NONE   0
#define QUEUED 1
#define SENT   2
typedef Node {
    bool has_index, index_history, index_subscribed;
    byte index_epoch;
    bool lives, local_lease, owns;
    bool history;               /* the one under which it registered */
    byte job;            /* NONE, QUEUED, or SENT and not yet recorded */
    byte seen            /* the version of the row that it read */
};
Node node[NODES];

/* -------------------------------------------------------------------------------------------------------- the publish calls */
#define IDLE     0
#define MATCHED  1
#define WAITING  2              /* for the statement's answer */
#define LOST     3              /* the connection is gone, and with it the answer */
#define FENCED   4              /* what is in the server may not commit any more */
#define ANSWERED 5
typedef Call { byte stage; bool matched_history, matched_subscribed; byte matched_epoch; bool is_ok, is_failed };
Call call;

#ifdef FAILOVER
byte changes = 1, touches = 0, failures = 1, copies = 1, failovers = 1;     /* so many may still happen */
#else
byte changes = 2, touches = 1, failures = 2, copies = 0, failovers = 0;
#endif
bool is_event_lost, is_owner_lost;                              /* what the failover lost */

#define OTHER      (1 - n)
#define IS_CURRENT (node[n].history == history)                 /* else its sessions find another history, and drop everything */

/* --------------------------------------------------------------------------- what the mutants take out, and what they leave */
#ifdef NO_EPOCH
#define PASSES true
#else
#ifdef NO_HISTORY
#define PASSES (call.matched_epoch == db[PRIMARY].epoch)
#else
#define PASSES (call.matched_epoch == db[PRIMARY].epoch && call.matched_history == history)
#endif
#endif
#ifdef NO_RECORD_FENCE
#define FENCE true
#else
#define FENCE (db[PRIMARY].registered[n] && lease[n])
#endif
#ifdef NO_VERSION
#define IS_UNCHANGED true
#else
#define IS_UNCHANGED (db[PRIMARY].version == node[n].seen)
#endif
#ifdef NO_LOCAL_LEASE
#define MAY_SEND true
#else
#define MAY_SEND node[n].local_lease
#endif
#ifdef GIVES_BUSY
#define IS_QUIET true
#else
#define IS_QUIET (node[n].job != SENT)
#endif
#ifdef NO_GRACE
#define MAY_EXPIRE true
#else
#define MAY_EXPIRE (node[OTHER].history == history || !node[OTHER].local_lease)     /* a lease has passed since the failover */
#endif
#ifdef SYNCHRONOUS
#define IS_SYNCHRONOUS true
#else
#define IS_SYNCHRONOUS false
#endif
#ifdef ACK_BEFORE_STANDBY
#define IS_DURABLE true
#else
#define IS_DURABLE (!IS_SYNCHRONOUS || failovers == 0 || db[STANDBY].stored == db[PRIMARY].stored)
#endif

inline forget(n) {
    node[n].owns = false; node[n].local_lease = false;
    node[n].job = NONE; node[n].seen = 0
}

inline drop_index(n) {
    node[n].has_index = false; node[n].index_epoch = 0; node[n].index_subscribed = false; node[n].index_history = false
}

inline copy(from, to) {
    db[to].epoch = db[from].epoch; db[to].subscribed = db[from].subscribed; db[to].owner = db[from].owner;
    db[to].stored = db[from].stored; db[to].pending = db[from].pending; db[to].version = db[from].version;
    db[to].registered[0] = db[from].registered[0]; db[to].registered[1] = db[from].registered[1]
}

inline acknowledge() {
    assert(db[PRIMARY].stored > 0);                                  /* A1: OK only after the event is stored */
    call.is_ok = true; call.stage = ANSWERED
}

inline publish(n) {
    if
    :: call.stage == IDLE && node[n].has_index && IS_CURRENT ->      /* match, in memory */
        call.matched_history = node[n].index_history; call.stage = MATCHED;
        call.matched_epoch = node[n].index_epoch; call.matched_subscribed = node[n].index_subscribed
    :: call.stage == MATCHED ->                   /* send the statement */
        in_server = true; call.stage = WAITING
#ifdef ACK_EARLY
        ; acknowledge()
#endif
    :: call.stage == WAITING && failures > 0 ->   /* lose the connection */
        failures--; call.stage = LOST
    :: call.stage == LOST ->                      /* raise the epoch: what is in the server passes no more */
#ifndef NO_PUBLISH_FENCE
        db[PRIMARY].epoch++;
#endif
        drop_index(n); call.stage = FENCED
    :: call.stage == FENCED && IS_DURABLE ->   /* look the event up by its id */
        if
        :: db[PRIMARY].stored > 0 -> acknowledge()
        :: else -> call.is_failed = true; call.stage = ANSWERED
        fi
    :: else
    fi
}

inline run_statement() {
    if
    :: PASSES ->
        assert(call.matched_subscribed == db[PRIMARY].subscribed);   /* A2: no event misses a subscription or has one too many */
        assert(!call.is_failed);                                     /* A3: what was reported as not stored, never is */
        db[PRIMARY].stored++;
        db[PRIMARY].pending = call.matched_subscribed
    :: else ->
        if :: call.stage == WAITING -> call.stage = IDLE :: else fi
    fi;
    in_server = false
}

inline deliver(n) {
    if
    :: node[n].owns && node[n].job == NONE && db[PRIMARY].pending && IS_CURRENT ->     /* hand-off or refill */
        node[n].job = QUEUED; node[n].seen = db[PRIMARY].version
    :: node[n].job == QUEUED && MAY_SEND ->
        assert(db[PRIMARY].owner == n || is_owner_lost);           /* A4: only the owner sends */
        assert(!(node[OTHER].job == SENT && node[OTHER].local_lease) || is_owner_lost);
        node[n].job = SENT
    :: node[n].job == SENT && IS_CURRENT ->                          /* record its outcome */
        if
        :: db[PRIMARY].pending && FENCE && IS_UNCHANGED ->
            assert(db[PRIMARY].registered[n] && lease[n] && db[PRIMARY].owner == n);    /* A5: no record without the lease */
            assert(db[PRIMARY].version == node[n].seen);          /* A6: nor over what another changed */
            db[PRIMARY].pending = false; db[PRIMARY].version = 0
        :: else
        fi;
        node[n].job = NONE; node[n].seen = 0
    :: else
    fi
}

active [NODES] proctype a_node() {
    byte n = _pid;
    do
    :: atomic { !node[n].lives -> node[n].lives = true }
    :: atomic { n == PUBLISHER && node[n].lives && IS_CURRENT && (!node[n].has_index || node[n].index_epoch != db[PRIMARY].epoch) ->
        node[n].has_index = true; node[n].index_history = history;      /* epoch and subscriptions are of one snapshot */
        node[n].index_epoch = db[PRIMARY].epoch; node[n].index_subscribed = db[PRIMARY].subscribed }
    :: atomic { n == PUBLISHER && node[n].lives -> publish(n) }
    :: atomic { node[n].lives -> deliver(n) }
    :: atomic { node[n].local_lease -> node[n].local_lease = false }    /* it ends before the row's */
    :: atomic { node[n].lives && IS_CURRENT && db[PRIMARY].registered[n] && !node[n].local_lease ->          /* renew */
        lease[n] = true; node[n].local_lease = true }
    :: atomic { node[n].lives && (!IS_CURRENT || !db[PRIMARY].registered[n]) ->         /* register anew, and own nothing */
#ifndef KEEPS_JOBS
        forget(n);
#endif
#ifndef NO_HISTORY
        if :: !IS_CURRENT -> drop_index(n) :: else fi;
#endif
        if :: db[PRIMARY].owner == n -> db[PRIMARY].owner = VACANT :: else fi;
        db[PRIMARY].registered[n] = true; lease[n] = true; node[n].local_lease = true; node[n].history = history }
    :: atomic { node[n].lives && IS_CURRENT && db[PRIMARY].registered[n] && MAY_EXPIRE &&       /* expire the other */
        db[PRIMARY].registered[OTHER] && !lease[OTHER] -> db[PRIMARY].registered[OTHER] = false }
    :: atomic { node[n].lives && IS_CURRENT && db[PRIMARY].registered[n] && !node[n].owns &&    /* take the bucket */
        (db[PRIMARY].owner == VACANT || (db[PRIMARY].owner == OTHER && !db[PRIMARY].registered[OTHER])) ->
        db[PRIMARY].owner = n; node[n].owns = true }
    :: atomic { node[n].lives && IS_CURRENT && node[n].owns && db[PRIMARY].owner == n && IS_QUIET ->     /* hand it over */
        db[PRIMARY].owner = VACANT; node[n].owns = false
#ifndef GIVES_BUSY
        ; node[n].job = NONE; node[n].seen = 0
#endif
        }
    :: atomic { node[n].lives && failures > 0 -> failures--; node[n].lives = false; forget(n);           /* kill -9 */
        drop_index(n);
        if :: n == PUBLISHER && call.stage > IDLE -> call.stage = ANSWERED :: else fi }
    od
}

active proctype postgres() {
    do
    :: atomic { in_server -> run_statement() }
    :: atomic { call.stage == WAITING && !in_server && IS_DURABLE -> acknowledge() }
    :: atomic { lease[0] && !node[0].local_lease -> lease[0] = false }
    :: atomic { lease[1] && !node[1].local_lease -> lease[1] = false }
    :: atomic { changes > 0 -> changes--; db[PRIMARY].subscribed = !db[PRIMARY].subscribed; db[PRIMARY].epoch++ }
    :: atomic { touches > 0 && db[PRIMARY].pending -> touches--; db[PRIMARY].version++ }        /* an operator's retry */
    :: atomic { copies > 0 && failovers > 0 -> copies--; copy(PRIMARY, STANDBY) }               /* the log reaches the standby */
    :: atomic { failovers > 0 -> failovers--;                           /* the standby is promoted */
        is_event_lost = db[PRIMARY].stored > db[STANDBY].stored;
        is_owner_lost = db[PRIMARY].owner != db[STANDBY].owner || db[PRIMARY].registered[0] != db[STANDBY].registered[0] ||
            db[PRIMARY].registered[1] != db[STANDBY].registered[1];     /* or it is the owner's under another id */
        assert(!IS_SYNCHRONOUS || !call.is_ok || !is_event_lost);       /* A7: nothing acknowledged is lost */
        in_server = false;
        if :: call.stage == WAITING -> call.stage = LOST :: else fi;
        copy(STANDBY, PRIMARY); history = true;
        if :: lease[0] = false :: skip fi;                              /* its lease_until may be that of before */
        if :: lease[1] = false :: skip fi }
    od
}
