-------------------------------- MODULE Retire --------------------------------
(* How the operator removes idle workers. retire.md maps each action to a function. *)
EXTENDS Naturals, FiniteSets, TLC

CONSTANTS
    Pods,           \* names of pods; each name is used for one pod only
    Initial,        \* how many pods run at first
    Least,          \* the count that the operator wants
    MaxWrites,      \* writes of other clients
    MaxEvictions,   \* pods that vanish for another reason
    MaxCrashes,     \* crashes of the operator
    LeaseTicks,     \* how long a retirement lease lasts; a tick is about 10 s
    \* Fixes. A variant sets one of them to FALSE.
    RankGuard,      \* no scale-in while a pod that stays is not Ready
    WaitsForSight,  \* the count is lowered after Kubernetes has seen the marks
    ClearsLate,     \* marks stay until the ReplicaSet has carried out the last count
    Handshake,      \* marks are cleared, and set again, only after Kubernetes has seen the change before
    CountsMarks,    \* the count is lowered only if each mark found its pod
    Deadline,       \* the count is lowered only while the leases last
    Renews,         \* leases are renewed until Kubernetes has removed the pods
    TestsCount,     \* the write tests the count that the decision was made from
    AsksStarting,   \* a pod that is not Ready is asked, because its worker may run
    \* Assumptions. An open variant sets one of them to FALSE.
    ReadyStays,     \* a Ready pod that is busy stays Ready during a scale-in
    OutageIsShort,  \* some operator leads again before a lease ends
    WriteIsBounded, \* a write takes effect within its timeout or never
    PodsStay        \* while a scale-in is under way, a pod vanishes only before it is marked

VARIABLES
    pods,      \* API server: each pod
    count,     \* API server: spec.replicas, with the number of its writes
    status,    \* API server: the status of the ReplicaSet
    copy,      \* ReplicaSet controller: its copy of the pods
    target,    \* ReplicaSet controller: its copy of the count
    expects,   \* ReplicaSet controller: whether it waits for the events of its own writes
    work,      \* workers: idle, busy or retired
    lease,     \* workers: ticks until the retirement lease ends
    op,        \* operator
    interrupted, foreign, evictions, crashes

vars == <<pods, count, status, copy, target, expects, work, lease, op, interrupted, foreign, evictions, crashes>>

Nowhere == [st |-> "none", ready |-> FALSE, mark |-> FALSE]
Gone == [st |-> "gone", ready |-> FALSE, mark |-> FALSE]
On(of) == {p \in Pods : of[p].st = "on"}
Marked(of) == {p \in On(of) : of[p].mark}
Unready(of) == {p \in On(of) : ~of[p].ready}
Number(set) == Cardinality(set)

AtRest == [pc |-> "rest", view |-> {}, unready |-> {}, marked |-> {}, observed |-> 0, agreed |-> {}, todo |-> {},
           age |-> 0]
View(now) == [now EXCEPT !.view = On(pods), !.unready = Unready(pods), !.marked = Marked(pods)]
Staying == op.view \ op.agreed

Init ==
    /\ \E on \in SUBSET Pods, starting \in SUBSET Pods :
        /\ Number(on) = Initial
        /\ starting \subseteq on /\ Number(starting) <= 1
        /\ pods = [p \in Pods |-> IF p \in on THEN [st |-> "on", ready |-> p \notin starting, mark |-> FALSE] ELSE Nowhere]
    /\ count = [n |-> Initial, gen |-> 0]
    /\ status = [gen |-> 0, n |-> Initial, marked |-> 0]
    /\ copy = pods /\ target = count /\ expects = FALSE
    /\ work = [p \in Pods |-> "idle"] /\ lease = [p \in Pods |-> 0]
    /\ op = AtRest
    /\ interrupted = FALSE /\ foreign = FALSE /\ evictions = 0 /\ crashes = 0

kubernetes == <<pods, count, status, copy, target, expects>>
workers == <<work, lease>>
history == <<interrupted, foreign, evictions, crashes>>

------------------------------------------------------------------------------
(* Workers *)

Take(p) ==
    /\ pods[p].st = "on" /\ work[p] = "idle"
    /\ work' = [work EXCEPT ![p] = "busy"]
    /\ UNCHANGED <<kubernetes, lease, op, history>>

Finish(p) ==
    /\ work[p] = "busy"
    /\ work' = [work EXCEPT ![p] = "idle"]
    /\ UNCHANGED <<kubernetes, lease, op, history>>

Retire(set) ==
    /\ work' = [p \in Pods |-> IF p \in set THEN "retired" ELSE work[p]]
    /\ lease' = [p \in Pods |-> IF p \in set THEN LeaseTicks ELSE lease[p]]

Resume(set) ==
    /\ work' = [p \in Pods |-> IF p \in set /\ work[p] = "retired" THEN "idle" ELSE work[p]]
    /\ lease' = [p \in Pods |-> IF p \in set THEN 0 ELSE lease[p]]

------------------------------------------------------------------------------
(* Operator: a scale-in *)

Counted(number) == status.gen = count.gen /\ count.n = number /\ status.n = number

Begin ==
    /\ op.pc = "rest" /\ count.n > Least
    /\ Number(On(pods)) = count.n /\ Marked(pods) = {}
    /\ op' = View([AtRest EXCEPT !.pc = "begun", !.observed = count.n])
    /\ UNCHANGED <<kubernetes, workers, history>>

Ask ==
    /\ op.pc = "begun"
    /\ \E asked \in SUBSET op.view :
        /\ asked # {} /\ Number(asked) <= op.observed - Least
        /\ LET agreed == {p \in asked : pods[p].st = "on" /\ work[p] # "busy"}
               unasked == IF AsksStarting THEN {} ELSE asked \cap op.unready IN
            /\ Retire(agreed \ unasked)
            /\ op' = View([op EXCEPT !.pc = "asked", !.agreed = agreed \cup unasked, !.age = 0])
    /\ UNCHANGED <<kubernetes, history>>

CallOff(next) == op' = [op EXCEPT !.pc = next, !.view = {}, !.unready = {}, !.marked = {}]

Check ==
    /\ op.pc = "asked"
    /\ IF op.agreed # {} /\ (RankGuard => Staying \cap op.unready = {})
            /\ Counted(Number(op.view \cup op.agreed)) /\ (Handshake => status.marked = 0)
        THEN op' = [op EXCEPT !.pc = "mark", !.todo = op.agreed]
        ELSE CallOff("resume")
    /\ UNCHANGED <<kubernetes, workers, history>>

Mark(p) ==
    /\ op.pc = "mark" /\ p \in op.todo
    /\ IF pods[p].st = "on"
        THEN /\ pods' = [pods EXCEPT ![p].mark = TRUE]
             /\ op' = [op EXCEPT !.todo = @ \ {p}]
        ELSE /\ UNCHANGED pods
             /\ IF CountsMarks THEN CallOff("resume") ELSE op' = [op EXCEPT !.todo = @ \ {p}]
    /\ UNCHANGED <<count, status, copy, target, expects, workers, history>>

Proof == IF CountsMarks THEN Number(op.agreed) ELSE Number({p \in op.agreed : pods[p].mark})

(* Kubernetes has seen the marks. The step to zero needs no such proof. *)
See ==
    /\ op.pc = "mark" /\ op.todo = {}
    /\ IF Staying = {}
        THEN On(pods) \subseteq op.agreed
        ELSE WaitsForSight => Counted(Number(op.view \cup op.agreed)) /\ status.marked = Proof
    /\ op' = [op EXCEPT !.pc = "lower", !.view = {}, !.unready = {}]
    /\ UNCHANGED <<kubernetes, workers, history>>

GiveUp ==
    /\ \/ op.pc = "mark" /\ op.todo = {}
       \/ op.pc = "lower" /\ Deadline /\ op.age > 1
    /\ CallOff("resume")
    /\ UNCHANGED <<kubernetes, workers, history>>

Send ==
    /\ op.pc = "lower" /\ (Deadline => op.age <= 1)
    /\ op' = [op EXCEPT !.pc = "sent"]
    /\ UNCHANGED <<kubernetes, workers, history>>

(* The API server handles the write. The answer may be lost, so the operator knows nothing in the second case. *)
Lower ==
    /\ op.pc \in {"sent", "late"}
    /\ IF TestsCount => count.n = op.observed
        THEN count' = [n |-> op.observed - Number(op.agreed), gen |-> count.gen + 1]
        ELSE UNCHANGED count
    /\ op' = AtRest
    /\ UNCHANGED <<pods, status, copy, target, expects, workers, history>>

LoseWrite ==
    /\ op.pc \in {"sent", "late"}
    /\ op' = AtRest
    /\ UNCHANGED <<kubernetes, workers, history>>

CallOffWorkers ==
    /\ op.pc = "resume"
    /\ \/ Resume(op.agreed)
       \/ UNCHANGED workers    \* unreachable: the lease ends later
    /\ op' = IF Handshake THEN AtRest ELSE [op EXCEPT !.pc = "unmark"]
    /\ UNCHANGED <<kubernetes, history>>

(* Without the handshake: a scale-in that is called off clears its marks immediately. *)
CallOffMarks ==
    /\ op.pc = "unmark"
    /\ \/ pods' = [p \in Pods |-> IF p \in op.agreed THEN [pods[p] EXCEPT !.mark = FALSE] ELSE pods[p]]
       \/ UNCHANGED pods
    /\ op' = AtRest
    /\ UNCHANGED <<count, status, copy, target, expects, workers, history>>

(* Operator: marks that an earlier scale-in has left, and leases of workers that wait for their removal *)

ClearMarks ==
    /\ op.pc = "rest" /\ Marked(pods) # {}
    /\ Number(On(pods)) = count.n
    /\ ClearsLate => Counted(Number(On(pods)))
    /\ Handshake => status.marked = Number(Marked(pods))
    /\ Resume(Marked(pods))
    /\ pods' = [p \in Pods |-> [pods[p] EXCEPT !.mark = FALSE]]
    /\ UNCHANGED <<count, status, copy, target, expects, op, history>>

Waiting == {p \in Marked(pods) : Number(On(pods)) > count.n /\ lease[p] < LeaseTicks}

Renew ==
    /\ Renews /\ op.pc = "rest" /\ Waiting # {}
    /\ Retire({p \in Waiting : work[p] # "busy"})
    /\ UNCHANGED <<kubernetes, op, history>>

Crash ==
    /\ op.pc # "down" /\ crashes < MaxCrashes
    /\ op' = [AtRest EXCEPT !.pc = "down"]
    /\ crashes' = crashes + 1
    /\ UNCHANGED <<kubernetes, workers, interrupted, foreign, evictions>>

Restart ==
    /\ op.pc = "down"
    /\ op' = AtRest
    /\ UNCHANGED <<kubernetes, workers, history>>

------------------------------------------------------------------------------
(* Kubernetes. The copies of the controller are as old as they like, but pods change in order. *)

SyncPods ==
    /\ copy # pods \/ expects
    /\ copy' = pods /\ expects' = FALSE
    /\ UNCHANGED <<pods, count, status, target, workers, op, history>>

SyncCount ==
    /\ target # count
    /\ target' = count
    /\ UNCHANGED <<pods, count, status, copy, expects, workers, op, history>>

WriteStatus ==
    LET now == [gen |-> target.gen, n |-> Number(On(copy)), marked |-> Number(Marked(copy))] IN
    /\ status # now
    /\ status' = now
    /\ UNCHANGED <<pods, count, copy, target, expects, workers, op, history>>

Rank(p) == (IF copy[p].ready THEN 2 ELSE 0) + (IF copy[p].mark THEN 0 ELSE 1)

RemovePods ==
    /\ ~expects /\ Number(On(copy)) > target.n
    /\ \E set \in SUBSET On(copy) :
        /\ Number(set) = Number(On(copy)) - target.n
        /\ \A p \in set, q \in On(copy) \ set : Rank(p) <= Rank(q)
        /\ interrupted' = (interrupted \/ (~foreign /\ \E p \in set : pods[p].st = "on" /\ work[p] = "busy"))
        /\ pods' = [p \in Pods |-> IF p \in set THEN Gone ELSE pods[p]]
        /\ work' = [p \in Pods |-> IF p \in set THEN "idle" ELSE work[p]]
        /\ lease' = [p \in Pods |-> IF p \in set THEN 0 ELSE lease[p]]
    /\ expects' = TRUE
    /\ UNCHANGED <<count, status, copy, target, op, foreign, evictions, crashes>>

CreatePods ==
    /\ ~expects /\ Number(On(copy)) < target.n
    /\ \E set \in SUBSET {p \in Pods : pods[p].st = "none"} :
        /\ Number(set) = target.n - Number(On(copy))
        /\ pods' = [p \in Pods |-> IF p \in set THEN [st |-> "on", ready |-> FALSE, mark |-> FALSE] ELSE pods[p]]
    /\ expects' = TRUE
    /\ UNCHANGED <<count, status, copy, target, workers, op, history>>

BecomeReady(p) ==
    /\ pods[p].st = "on" /\ ~pods[p].ready
    /\ pods' = [pods EXCEPT ![p].ready = TRUE]
    /\ UNCHANGED <<count, status, copy, target, expects, workers, op, history>>

BecomeUnready(p) ==
    /\ ~ReadyStays /\ pods[p].st = "on" /\ pods[p].ready
    /\ pods' = [pods EXCEPT ![p].ready = FALSE]
    /\ UNCHANGED <<count, status, copy, target, expects, workers, op, history>>

Spare == Number({p \in Pods : pods[p].st = "none"})

Evict(p) ==
    /\ pods[p].st = "on" /\ evictions < MaxEvictions
    /\ Spare > 0 /\ count.n <= Number(On(pods)) - 1 + Spare
    /\ PodsStay => p \in op.todo \/ (op.pc \in {"rest", "begun"} /\ Marked(pods) = {})
    /\ pods' = [pods EXCEPT ![p] = Gone]
    /\ work' = [work EXCEPT ![p] = "idle"] /\ lease' = [lease EXCEPT ![p] = 0]
    /\ evictions' = evictions + 1
    /\ UNCHANGED <<count, status, copy, target, expects, op, interrupted, foreign, crashes>>

(* Another client writes the count. If it lowers the count, Kubernetes may remove a busy worker for that reason. *)
WriteCount(number) ==
    /\ count.gen < MaxWrites /\ number # count.n
    /\ number <= Number(On(pods)) + Spare
    /\ count' = [n |-> number, gen |-> count.gen + 1]
    /\ foreign' = (foreign \/ number < count.n)
    /\ UNCHANGED <<pods, status, copy, target, expects, workers, op, interrupted, evictions, crashes>>

Due == \E p \in Waiting : lease[p] = 1

Tick ==
    /\ \E p \in Pods : lease[p] > 0
    /\ Due /\ Renews => op.pc \notin {"rest", "begun"} /\ (op.pc = "down" => ~OutageIsShort)
    /\ WriteIsBounded => op.pc # "late"
    /\ lease' = [p \in Pods |-> IF lease[p] > 0 THEN lease[p] - 1 ELSE 0]
    /\ work' = [p \in Pods |-> IF work[p] = "retired" /\ lease[p] = 1 THEN "idle" ELSE work[p]]
    /\ op' = [op EXCEPT !.age = IF op.agreed = {} THEN 0 ELSE IF @ < 2 THEN @ + 1 ELSE @,
                        !.pc = IF @ = "sent" THEN "late" ELSE @]
    /\ UNCHANGED <<kubernetes, history>>

------------------------------------------------------------------------------

Operator == Begin \/ Ask \/ Check \/ (\E p \in Pods : Mark(p)) \/ See \/ GiveUp \/ Send \/ Lower \/ LoseWrite
    \/ CallOffWorkers \/ CallOffMarks \/ ClearMarks \/ Renew \/ Restart

Controller == SyncPods \/ SyncCount \/ WriteStatus \/ RemovePods \/ CreatePods \/ \E p \in Pods : BecomeReady(p)

Next == Operator \/ Controller \/ Crash \/ Tick
    \/ \E p \in Pods : Take(p) \/ Finish(p) \/ BecomeUnready(p) \/ Evict(p)
    \/ \E number \in 0..Number(Pods) : WriteCount(number)

Spec == Init /\ [][Next]_vars

Fair == Spec
    /\ WF_vars(Ask \/ Check \/ (\E p \in Pods : Mark(p)) \/ See \/ GiveUp \/ Send \/ Lower \/ LoseWrite
               \/ CallOffWorkers \/ CallOffMarks \/ Restart)
    /\ SF_vars(ClearMarks) /\ WF_vars(Tick)
    /\ WF_vars(SyncPods) /\ WF_vars(SyncCount) /\ SF_vars(WriteStatus) /\ SF_vars(RemovePods) /\ SF_vars(CreatePods)

Symmetry == Permutations(Pods)

(* A scale-in of the operator removes no worker that is in a handler. *)
BusyWorkerStays == ~interrupted

TypeOK ==
    /\ work \in [Pods -> {"idle", "busy", "retired"}] /\ lease \in [Pods -> 0..LeaseTicks]
    /\ \A p \in Pods : (work[p] = "retired") = (lease[p] > 0)

(* Marks end. So do leases, unless the operator asks again. *)
MarksEnd == []<>(Marked(pods) = {})
LeasesEnd == <>[](op.pc = "rest") => []<>(\A p \in Pods : lease[p] = 0)

(* After the last write of the count, as many pods exist. *)
CountConverges == <>[](Number(On(pods)) = count.n)
===============================================================================
