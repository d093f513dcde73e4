------------------------------ MODULE Settlement ------------------------------
(* How a worker settles its deliveries. settlement.md maps each action to a function. *)
EXTENDS Naturals, FiniteSets

CONSTANTS
    Messages,
    MaxTries,         \* attempts that fail before a message becomes a dead letter
    MaxLosses,        \* lost channels of the consumer and the publisher, and deaths of the worker
    MaxDeletions,     \* deletions of the empty delay queue, and deaths of the broker
    MaxSlow,          \* confirms that take longer than the publisher's timeout
    \* Fixes. A variant sets one of them to FALSE.
    ConfirmFirst,     \* the original is acknowledged after its copy is confirmed
    LeaseHeld,        \* a copy is sent only while the lease of its original is held
    LeaseOfChannel,   \* a delivery tag counts only on the channel that brought it
    WaitsForConfirm,  \* a slow confirm is not the same as none
    Mandatory,        \* RabbitMQ returns a copy that no queue takes
    WaitsForNewQueue, \* a new queue is used only when it survives a restart of RabbitMQ
    \* Assumption. An open variant sets it to FALSE.
    KnowsAge          \* a worker also knows that a queue is new if another process has created it

VARIABLES
    queue, delayed, dead, done,  \* RabbitMQ: how many instances of each message, and how many were handled
    delivery,   \* worker: the message in its slot, and how far it is
    held,       \* worker: whether the lease is held
    unacked,    \* RabbitMQ: the message that is delivered and not acknowledged
    copy,       \* publisher: the copy, and how far it is
    stored,     \* RabbitMQ: whether it has stored the copy whose confirm is on the way
    delay,      \* RabbitMQ: the delay queue is absent, new or safe
    declared,   \* worker: whether it knows that the delay queue exists
    created,    \* worker: whether it has created it
    tries, losses, deletions, slow, causeless

vars == <<queue, delayed, dead, done, delivery, held, unacked, copy, stored, delay, declared, created, tries, losses,
          deletions, slow, causeless>>
instances == <<queue, delayed, dead, done>>
slot == <<delivery, held, unacked>>
publisher == <<copy, stored>>
topology == <<delay, declared, created>>
history == <<tries, losses, deletions, slow, causeless>>

Nothing == "nothing"
NoDelivery == [m |-> Nothing, st |-> "none"]
NoCopy == [m |-> Nothing, to |-> Nothing, st |-> "none"]

Init ==
    /\ queue = [m \in Messages |-> 1]
    /\ delayed = [m \in Messages |-> 0] /\ dead = [m \in Messages |-> 0] /\ done = [m \in Messages |-> 0]
    /\ delivery = NoDelivery /\ held = FALSE /\ unacked = Nothing
    /\ copy = NoCopy /\ stored = FALSE
    /\ delay = "absent" /\ declared = FALSE /\ created = FALSE
    /\ tries = [m \in Messages |-> 0]
    /\ losses = 0 /\ deletions = 0 /\ slow = 0 /\ causeless = FALSE

------------------------------------------------------------------------------
(* The slot *)

(* The slot is free when the message is settled and the handler has returned. Without leases, the next message comes
   while the handler of a lost one still runs, with the same tag on another channel. *)
Deliver(m) ==
    /\ unacked = Nothing /\ queue[m] > 0
    /\ queue' = [queue EXCEPT ![m] = @ - 1] /\ unacked' = m
    /\ IF delivery = NoDelivery
        THEN delivery' = [m |-> m, st |-> "handling"] /\ held' = TRUE
        ELSE ~LeaseOfChannel /\ ~held /\ UNCHANGED <<delivery, held>>
    /\ UNCHANGED <<delayed, dead, done, publisher, topology, history>>

(* An acknowledgement. With a tag of an earlier channel, it would settle the message that has the same tag now. *)
Acknowledge ==
    /\ unacked' = IF held \/ ~LeaseOfChannel THEN Nothing ELSE unacked
    /\ held' = FALSE /\ delivery' = NoDelivery

Succeed ==
    /\ delivery.st = "handling"
    /\ done' = [done EXCEPT ![delivery.m] = IF @ < 2 THEN @ + 1 ELSE @]
    /\ Acknowledge
    /\ UNCHANGED <<queue, delayed, dead, publisher, topology, history>>

Fail ==
    /\ delivery.st = "handling" /\ held /\ copy = NoCopy
    /\ LET again == tries[delivery.m] < MaxTries IN
        /\ copy' = [m |-> delivery.m, to |-> IF again THEN "delay" ELSE "dead",
                    st |-> IF again /\ ~declared THEN "undeclared" ELSE "ready"]
        /\ tries' = [tries EXCEPT ![delivery.m] = IF again THEN @ + 1 ELSE @]
    /\ IF ConfirmFirst
        THEN delivery' = [delivery EXCEPT !.st = "copying"] /\ UNCHANGED <<held, unacked>>
        ELSE Acknowledge
    /\ UNCHANGED <<instances, stored, topology, losses, deletions, slow, causeless>>

(* The result of a handler whose delivery is lost is discarded. *)
Discard ==
    /\ delivery # NoDelivery /\ ~held /\ LeaseOfChannel
    /\ delivery' = NoDelivery
    /\ UNCHANGED <<instances, held, unacked, publisher, topology, history>>

------------------------------------------------------------------------------
(* The copy *)

Declare ==
    /\ copy.st = "undeclared"
    /\ delay' = IF delay = "absent" THEN "new" ELSE delay
    /\ declared' = TRUE /\ created' = (delay = "absent")
    /\ copy' = [copy EXCEPT !.st = "ready"]
    /\ UNCHANGED <<instances, slot, stored, history>>

Age ==
    /\ delay = "new"
    /\ delay' = "safe"
    /\ UNCHANGED <<instances, slot, publisher, declared, created, history>>

SendCopy ==
    /\ copy.st = "ready"
    /\ WaitsForNewQueue /\ copy.to = "delay" /\ (created \/ KnowsAge) => delay # "new"
    /\ IF LeaseHeld => held \/ ~ConfirmFirst
        THEN /\ copy' = [copy EXCEPT !.st = "sent"]
             /\ causeless' = (causeless \/ (ConfirmFirst /\ ~held))
        ELSE copy' = NoCopy /\ UNCHANGED causeless
    /\ UNCHANGED <<instances, slot, stored, topology, tries, losses, deletions, slow>>

Store ==
    /\ copy.st = "sent" /\ ~stored
    /\ \/ copy.to = "dead" /\ dead' = [dead EXCEPT ![copy.m] = @ + 1] /\ UNCHANGED delayed
       \/ copy.to = "delay" /\ delay # "absent" /\ delayed' = [delayed EXCEPT ![copy.m] = @ + 1] /\ UNCHANGED dead
       \/ copy.to = "delay" /\ delay = "absent" /\ ~Mandatory /\ UNCHANGED <<delayed, dead>>
    /\ stored' = TRUE
    /\ UNCHANGED <<queue, done, slot, copy, topology, history>>

(* No queue takes the copy: RabbitMQ returns it, and the worker declares the queue again. *)
Return ==
    /\ Mandatory /\ copy.st = "sent" /\ ~stored /\ copy.to = "delay" /\ delay = "absent"
    /\ declared' = FALSE
    /\ copy' = IF held THEN [copy EXCEPT !.st = "undeclared"] ELSE NoCopy
    /\ UNCHANGED <<instances, slot, stored, delay, created, history>>

Confirm ==
    /\ copy.st = "sent" /\ stored
    /\ copy' = NoCopy /\ stored' = FALSE
    /\ IF delivery.m = copy.m /\ delivery.st = "copying" THEN Acknowledge ELSE UNCHANGED slot
    /\ UNCHANGED <<instances, topology, history>>

(* The confirm takes long. The publisher must not report that the copy is not confirmed: it may be, later. *)
TimeOut ==
    /\ copy.st = "sent" /\ slow < MaxSlow
    /\ slow' = slow + 1
    /\ copy' = IF WaitsForConfirm THEN copy ELSE [copy EXCEPT !.st = "ready"]
    /\ stored' = (stored /\ WaitsForConfirm)
    /\ IF ~WaitsForConfirm /\ ~stored
        THEN IF copy.to = "dead" THEN dead' = [dead EXCEPT ![copy.m] = @ + 1] /\ UNCHANGED delayed
             ELSE delayed' = [delayed EXCEPT ![copy.m] = @ + 1] /\ UNCHANGED dead
        ELSE UNCHANGED <<delayed, dead>>
    /\ UNCHANGED <<queue, done, slot, topology, tries, losses, deletions, causeless>>

------------------------------------------------------------------------------
(* Losses *)

LoseConsumer ==
    /\ losses < MaxLosses /\ unacked # Nothing
    /\ losses' = losses + 1
    /\ queue' = [queue EXCEPT ![unacked] = @ + 1] /\ unacked' = Nothing
    /\ held' = FALSE
    /\ UNCHANGED <<delayed, dead, done, delivery, publisher, topology, tries, deletions, slow, causeless>>

(* The publisher's channel closes: a copy that was sent may be stored or not, and is sent again. *)
LosePublisher ==
    /\ losses < MaxLosses /\ copy.st = "sent"
    /\ losses' = losses + 1
    /\ stored' = FALSE
    /\ copy' = IF held THEN [copy EXCEPT !.st = "ready"] ELSE NoCopy
    /\ UNCHANGED <<instances, slot, topology, tries, deletions, slow, causeless>>

KillWorker ==
    /\ losses < MaxLosses
    /\ losses' = losses + 1
    /\ queue' = IF unacked = Nothing THEN queue ELSE [queue EXCEPT ![unacked] = @ + 1]
    /\ delivery' = NoDelivery /\ held' = FALSE /\ unacked' = Nothing
    /\ copy' = NoCopy /\ stored' = FALSE /\ declared' = FALSE /\ created' = FALSE
    /\ UNCHANGED <<delayed, dead, done, delay, tries, deletions, slow, causeless>>

(* RabbitMQ dies and starts again. A queue of its first second is gone, with its messages. *)
KillBroker ==
    /\ deletions < MaxDeletions
    /\ deletions' = deletions + 1
    /\ queue' = IF unacked = Nothing THEN queue ELSE [queue EXCEPT ![unacked] = @ + 1]
    /\ unacked' = Nothing /\ held' = FALSE
    /\ delay' = IF delay = "new" THEN "absent" ELSE delay
    /\ delayed' = IF delay = "new" THEN [m \in Messages |-> 0] ELSE delayed
    /\ stored' = FALSE
    /\ copy' = IF copy.st = "sent" THEN NoCopy ELSE copy
    /\ UNCHANGED <<dead, done, delivery, declared, created, tries, losses, slow, causeless>>

DeleteQueue ==
    /\ deletions < MaxDeletions /\ delay # "absent" /\ \A m \in Messages : delayed[m] = 0
    /\ deletions' = deletions + 1
    /\ delay' = "absent"
    /\ UNCHANGED <<instances, slot, publisher, declared, created, tries, losses, slow, causeless>>

(* RabbitMQ moves a message back to the work queue when its delay is over. *)
Expire(m) ==
    /\ delayed[m] > 0
    /\ delayed' = [delayed EXCEPT ![m] = @ - 1] /\ queue' = [queue EXCEPT ![m] = @ + 1]
    /\ UNCHANGED <<dead, done, slot, publisher, topology, history>>

------------------------------------------------------------------------------

Worker == Succeed \/ Fail \/ Discard \/ Declare \/ SendCopy
RabbitMQ == Age \/ Store \/ Return \/ Confirm \/ \E m \in Messages : Deliver(m) \/ Expire(m)
Losses == TimeOut \/ LoseConsumer \/ LosePublisher \/ KillWorker \/ KillBroker \/ DeleteQueue

Next == Worker \/ RabbitMQ \/ Losses

Spec == Init /\ [][Next]_vars

Fair == Spec
    /\ WF_vars(Succeed \/ Fail) /\ WF_vars(Discard) /\ WF_vars(Declare) /\ WF_vars(SendCopy)
    /\ WF_vars(Age) /\ WF_vars(Store) /\ WF_vars(Return) /\ WF_vars(Confirm)
    /\ \A m \in Messages : SF_vars(Deliver(m)) /\ WF_vars(Expire(m))

Instances(m) == queue[m] + delayed[m] + dead[m] + (IF unacked = m THEN 1 ELSE 0)

(* At least once: a message is handled, or dead-lettered, or still there. *)
NoMessageLost == \A m \in Messages : Instances(m) + done[m] > 0

RECURSIVE Sum(_, _)
Sum(of, set) == IF set = {} THEN 0 ELSE LET m == CHOOSE m \in set : TRUE IN of[m] + Sum(of, set \ {m})
Extra(m) == Instances(m) + done[m] - 1

(* A copy is never without cause: each message that exists twice is the price of one loss, or is about to be settled. *)
CopyHasCause ==
    /\ ~causeless
    /\ Sum([m \in Messages |-> IF Extra(m) > 0 THEN Extra(m) ELSE 0], Messages)
        <= losses + deletions + (IF delivery.st = "copying" /\ stored THEN 1 ELSE 0)

(* Each message is handled or dead-lettered in the end. *)
EachMessageSettled == \A m \in Messages : <>(done[m] + dead[m] > 0)
===============================================================================
