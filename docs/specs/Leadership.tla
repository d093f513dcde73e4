------------------------------ MODULE Leadership ------------------------------
(* Which operator writes, and which has the doorbells. leadership.md maps each action to a function. *)
EXTENDS Naturals, FiniteSets, TLC

CONSTANTS
    OfA, OfB,        \* the processes of two releases
    Doorbells,       \* whether they install doorbells
    LeaseTicks,      \* how long the Lease lasts; a tick is about 2 s
    MaxVersion,      \* writes of the Lease
    MaxFreezes,
    MaxMoves,        \* how often the namespace changes its release
    MaxWrites,       \* writes of the count
    \* Fixes. A variant sets one of them to FALSE.
    Fence,           \* each write tests that the Lease is valid on the own clock
    CountsFromRequest, \* the Lease of a holder begins before its request, not with the answer
    StopsFirst,      \* a holder stops writing before it releases the Lease
    TestsCount,      \* the write tests the count that the decision was made from
    TestsVersion,    \* the API server refuses a write of an old version of the Lease
    EndsWhenLost,    \* a process whose Lease has ended never leads again
    Claims,          \* a release serves a namespace only if it has the claim
    \* Assumption. An open variant sets it to FALSE.
    ClockRuns        \* the monotonic clock of a frozen process runs on

A == "A"
B == "B"
Procs == OfA \cup OfB
Releases == {A, B}
Of(p) == IF p \in OfA THEN A ELSE B

VARIABLES
    lease,      \* API server: holder and version of the Lease of each release
    valid,      \* each process: ticks until its Lease ends on its own clock
    known,      \* each process: the version of the Lease that it saw last, and ticks until that one is free
    request,    \* each process: its request for the Lease
    frozen,
    count,      \* API server: replicas of one Deployment
    write,      \* each process: its write of that count
    refused,    \* the processes to which the fence has refused a write
    claim,      \* API server: the release that serves the namespace
    believes,   \* each process: the release that serves the namespace, as it last read it
    door,       \* the processes whose doorbell is installed
    overlap, blind, freezes, moves, writes

vars == <<lease, valid, known, request, frozen, count, write, refused, claim, believes, door, overlap, blind, freezes, moves, writes>>

NoRequest == [st |-> "none", base |-> 0, age |-> 0, renews |-> FALSE]
NoWrite == [st |-> "none", saw |-> 0, to |-> 0]
Leads(p) == valid[p] > 0
Awake(p) == p \notin frozen

Init ==
    /\ lease = [r \in Releases |-> [holder |-> "nobody", version |-> 0]]
    /\ valid = [p \in Procs |-> 0]
    /\ known = [p \in Procs |-> [version |-> 0, left |-> 0]]
    /\ request = [p \in Procs |-> NoRequest]
    /\ frozen = {}
    /\ count = 1 /\ write = [p \in Procs |-> NoWrite] /\ refused = {}
    /\ claim = A /\ believes = [p \in Procs |-> A]
    /\ door = {}
    /\ overlap = FALSE /\ blind = FALSE /\ freezes = 0 /\ moves = 0 /\ writes = 0

election == <<lease, valid, known, request>>
counts == <<count, write, refused, blind, writes>>
shards == <<claim, believes, door, moves>>

------------------------------------------------------------------------------
(* The election *)

Look(p) ==
    /\ Awake(p) /\ ~Leads(p) /\ request[p].st = "none"
    /\ known[p].version # lease[Of(p)].version
    /\ known' = [known EXCEPT ![p] = [version |-> lease[Of(p)].version,
                                      left |-> IF lease[Of(p)].holder = "nobody" THEN 0 ELSE LeaseTicks]]
    /\ UNCHANGED <<lease, valid, request, frozen, counts, shards, overlap, freezes>>

Send(p) ==
    /\ Awake(p) /\ request[p].st = "none"
    /\ lease[Of(p)].version < MaxVersion
    /\ \/ Leads(p)
       \/ /\ known[p].left = 0 /\ known[p].version = lease[Of(p)].version
          \* A process that has led before was restarted, and has decided nothing.
          /\ EndsWhenLost => p \notin refused /\ write[p].st # "decided"
    /\ request' = [request EXCEPT ![p] = [st |-> "sent", base |-> known[p].version, age |-> 0, renews |-> Leads(p)]]
    /\ UNCHANGED <<lease, valid, known, frozen, counts, shards, overlap, freezes>>

(* The API server handles the request, also while the process is frozen. *)
Receive(p) ==
    /\ request[p].st = "sent"
    /\ IF TestsVersion => request[p].base = lease[Of(p)].version
        THEN /\ lease' = [lease EXCEPT ![Of(p)] = [holder |-> p, version |-> @.version + 1]]
             /\ request' = [request EXCEPT ![p].st = "done", ![p].base = lease[Of(p)].version + 1]
        ELSE /\ UNCHANGED lease
             /\ request' = [request EXCEPT ![p] = NoRequest]
    /\ UNCHANGED <<valid, known, frozen, counts, shards, overlap, freezes>>

Answer(p) ==
    /\ Awake(p) /\ request[p].st = "done"
    /\ LET since == IF CountsFromRequest THEN request[p].age ELSE 0
           late == EndsWhenLost /\ request[p].renews /\ ~Leads(p) IN
        valid' = [valid EXCEPT ![p] = IF since < LeaseTicks /\ ~late THEN LeaseTicks - since ELSE 0]
    /\ known' = [known EXCEPT ![p] = [version |-> request[p].base, left |-> LeaseTicks]]
    /\ request' = [request EXCEPT ![p] = NoRequest]
    /\ overlap' = (overlap \/ \E q \in Procs : q # p /\ Of(q) = Of(p) /\ valid'[p] > 0 /\ valid'[q] > 0)
    /\ UNCHANGED <<lease, frozen, counts, shards, freezes>>

(* The answer is lost. The request may have been carried out. *)
LoseAnswer(p) ==
    /\ Awake(p) /\ request[p].st \in {"sent", "done"}
    /\ request' = [request EXCEPT ![p] = NoRequest]
    /\ UNCHANGED <<lease, valid, known, frozen, counts, shards, overlap, freezes>>

(* After a conflict the holder reads the Lease, and stops if it has another holder. *)
Reread(p) ==
    /\ Awake(p) /\ Leads(p) /\ request[p].st = "none" /\ known[p].version # lease[Of(p)].version
    /\ IF lease[Of(p)].holder = p
        THEN known' = [known EXCEPT ![p].version = lease[Of(p)].version] /\ UNCHANGED valid
        ELSE valid' = [valid EXCEPT ![p] = 0] /\ UNCHANGED known
    /\ UNCHANGED <<lease, request, frozen, counts, shards, overlap, freezes>>

Release(p) ==
    /\ Awake(p) /\ Leads(p) /\ request[p].st = "none" /\ lease[Of(p)].version < MaxVersion
    /\ known[p].version = lease[Of(p)].version
    /\ lease' = [lease EXCEPT ![Of(p)] = [holder |-> "nobody", version |-> @.version + 1]]
    /\ valid' = IF StopsFirst THEN [valid EXCEPT ![p] = 0] ELSE valid
    /\ UNCHANGED <<known, request, frozen, counts, shards, overlap, freezes>>

Freeze(p) ==
    /\ Awake(p) /\ freezes < MaxFreezes
    /\ frozen' = frozen \cup {p} /\ freezes' = freezes + 1
    /\ UNCHANGED <<election, counts, shards, overlap>>

Thaw(p) ==
    /\ ~Awake(p)
    /\ frozen' = frozen \ {p}
    /\ UNCHANGED <<election, counts, shards, overlap, freezes>>

Less(n) == IF n > 0 THEN n - 1 ELSE 0

Tick ==
    /\ \E p \in Procs : valid[p] > 0 \/ known[p].left > 0
    /\ valid' = [p \in Procs |-> IF ClockRuns \/ Awake(p) THEN Less(valid[p]) ELSE valid[p]]
    /\ known' = [p \in Procs |-> [known[p] EXCEPT !.left = IF ClockRuns \/ Awake(p) THEN Less(@) ELSE @]]
    /\ request' = [p \in Procs |-> IF request[p].st = "none" THEN NoRequest
                                   ELSE [request[p] EXCEPT !.age = IF @ < LeaseTicks THEN @ + 1 ELSE @]]
    /\ UNCHANGED <<lease, frozen, counts, shards, overlap, freezes>>

------------------------------------------------------------------------------
(* Writes of the count *)

Decide(p) ==
    /\ Awake(p) /\ Leads(p) /\ believes[p] = Of(p) /\ write[p].st = "none" /\ writes < MaxWrites
    /\ \E to \in 0..2 : to # count /\ write' = [write EXCEPT ![p] = [st |-> "decided", saw |-> count, to |-> to]]
    /\ writes' = writes + 1
    /\ UNCHANGED <<election, frozen, count, refused, blind, shards, overlap, freezes>>

(* The fence is tested, then the request is sent. *)
Write(p) ==
    /\ Awake(p) /\ write[p].st = "decided"
    /\ IF Fence => Leads(p)
        THEN /\ write' = [write EXCEPT ![p].st = "sent"]
             /\ overlap' = (overlap \/ \E q \in Procs : q # p /\ Of(q) = Of(p) /\ Leads(q))
             /\ UNCHANGED refused
        ELSE write' = [write EXCEPT ![p] = NoWrite] /\ refused' = refused \cup {p} /\ UNCHANGED overlap
    /\ UNCHANGED <<election, frozen, count, blind, writes, shards, freezes>>

Land(p) ==
    /\ write[p].st = "sent"
    /\ IF TestsCount => write[p].saw = count
        THEN count' = write[p].to /\ blind' = (blind \/ write[p].saw # count)
        ELSE UNCHANGED <<count, blind>>
    /\ write' = [write EXCEPT ![p] = NoWrite]
    /\ UNCHANGED <<election, frozen, refused, writes, shards, overlap, freezes>>

(* Of a process that is not leading, and was refused a write: it ends, and another one begins in its place. *)
Restart(p) ==
    /\ Awake(p) /\ ~Leads(p) /\ p \in refused /\ request[p].st = "none"
    /\ refused' = refused \ {p}
    /\ UNCHANGED <<election, frozen, count, write, blind, writes, shards, overlap, freezes>>

------------------------------------------------------------------------------
(* Doorbells and shards *)

Serves(p) == Leads(p) /\ (Claims => believes[p] = Of(p))

Install(p) ==
    /\ Doorbells /\ Awake(p) /\ Serves(p) /\ p \notin door
    /\ door' = door \cup {p}
    /\ UNCHANGED <<election, frozen, counts, claim, believes, moves, overlap, freezes>>

(* A pass sees that another release serves the namespace, or the process ends because it no longer leads. *)
Leave(p) ==
    /\ Awake(p) /\ ~Serves(p) /\ p \in door
    /\ door' = door \ {p}
    /\ UNCHANGED <<election, frozen, counts, claim, believes, moves, overlap, freezes>>

Disconnect(p) ==
    /\ ~Awake(p) /\ p \in door
    /\ door' = door \ {p}
    /\ UNCHANGED <<election, frozen, counts, claim, believes, moves, overlap, freezes>>

Move ==
    /\ Doorbells /\ moves < MaxMoves
    /\ claim' = IF claim = A THEN B ELSE A
    /\ moves' = moves + 1
    /\ UNCHANGED <<election, frozen, counts, believes, door, overlap, freezes>>

LookAtClaims(p) ==
    /\ Awake(p) /\ believes[p] # claim
    /\ believes' = [believes EXCEPT ![p] = claim]
    /\ UNCHANGED <<election, frozen, counts, claim, door, moves, overlap, freezes>>

------------------------------------------------------------------------------

Next == Tick \/ Move \/ \E p \in Procs :
    Look(p) \/ Send(p) \/ Receive(p) \/ Answer(p) \/ LoseAnswer(p) \/ Reread(p) \/ Release(p) \/ Freeze(p) \/ Thaw(p)
    \/ Decide(p) \/ Write(p) \/ Land(p) \/ Restart(p) \/ Install(p) \/ Leave(p) \/ Disconnect(p) \/ LookAtClaims(p)

Spec == Init /\ [][Next]_vars

Symmetry == Permutations(OfA)

(* Of one release, at most one process may write: none leads, or passes the fence, beside another one that leads. *)
OneLeader ==
    /\ ~overlap
    /\ \A p, q \in Procs : p # q /\ Of(p) = Of(q) => ~(Leads(p) /\ Leads(q))

(* No write changes a count that its writer did not see. *)
NoStaleWrite == ~blind

(* All parts of a leader write: none of them was refused a write, after which it writes nothing more. *)
LeaderWrites == \A p \in refused : ~Leads(p)

(* Two doorbells exist only until a process that lost its Lease, or its claim, has noticed that. *)
Settled(p) == Awake(p) /\ Serves(p) /\ believes[p] = claim
DoorbellsSingle == \A p, q \in door : p # q => ~(Settled(p) /\ Settled(q))
===============================================================================
