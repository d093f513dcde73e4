------------------------------- MODULE Doorbell -------------------------------
(* How an idle queue wakes. doorbell.md maps each action to a function. *)
EXTENDS Naturals

CONSTANTS
    MaxMessages,       \* messages that are published
    MaxLosses,         \* lost connections, crashes and freezes of the operator, together
    MaxCalls,          \* calls about the neighbour, a queue whose doorbell is on the same channel
    \* Fixes. A variant sets one of them to FALSE.
    Watchdog,          \* a channel whose call gets no answer is replaced
    Moves,             \* the other doorbells of a replaced channel get a new one
    Proof,             \* before a call on a shared channel, the queue has answered on another one
    CancelFirst,       \* a message is requeued after its doorbell is cancelled
    RequeuesLate,      \* a message that arrives at a doorbell that is being removed is requeued
    Heartbeat,         \* RabbitMQ closes the connection of a frozen operator
    PassAfterLoss,     \* a lost connection starts a pass
    \* Assumption.
    LostDuringCall     \* the neighbour may lose its majority between the proof and the call

VARIABLES
    waiting, published, done,  \* RabbitMQ: messages
    worker,     \* none, idle, busy or retired
    count,      \* API server: replicas, 0 or 1
    bell,       \* operator: state of the doorbell
    rings,      \* operator: the doorbell rings when its cancel is confirmed
    msg,        \* the message on the way to the doorbell (sent) or at the operator (held)
    consumer,   \* RabbitMQ: whether the doorbell is a consumer
    call,       \* the outstanding call on the channel of the doorbell
    sick,       \* the neighbour has no majority
    old,        \* a channel that the operator has given up and that RabbitMQ still has
    pc,         \* operator: the step of its pass
    seen,       \* operator: whether the pass saw work
    pending,    \* operator: whether another pass is due
    frozen, losses, calls

vars == <<waiting, published, done, worker, count, bell, rings, msg, consumer, call, sick, old, pc, seen, pending,
          frozen, losses, calls>>
messages == <<waiting, published, done>>
channel == <<msg, consumer, call>>
doorbell == <<bell, rings>>
pass == <<pc, seen, pending>>
faults == <<frozen, losses, calls>>

NoChannel == [why |-> "none", consumer |-> FALSE, has |-> FALSE]
One(condition) == IF condition THEN 1 ELSE 0
Blocked == call = "neighbour" /\ sick

Init ==
    /\ waiting = 0 /\ published = 0 /\ done = 0
    /\ worker = "none" /\ count = 0
    /\ bell = "none" /\ rings = FALSE
    /\ msg = "no" /\ consumer = FALSE /\ call = "none" /\ sick = FALSE /\ old = NoChannel
    /\ pc = "rest" /\ seen = FALSE /\ pending = TRUE
    /\ frozen = FALSE /\ losses = 0 /\ calls = 0

------------------------------------------------------------------------------
(* Publisher and worker *)

Publish ==
    /\ published < MaxMessages
    /\ published' = published + 1 /\ waiting' = waiting + 1
    /\ UNCHANGED <<done, worker, count, doorbell, channel, sick, old, pass, faults>>

Start ==
    /\ count = 1 /\ worker = "none"
    /\ worker' = "idle"
    /\ UNCHANGED <<messages, count, doorbell, channel, sick, old, pass, faults>>

WorkerTake ==
    /\ worker = "idle" /\ waiting > 0
    /\ worker' = "busy" /\ waiting' = waiting - 1
    /\ UNCHANGED <<published, done, count, doorbell, channel, sick, old, pass, faults>>

WorkerDone ==
    /\ worker = "busy"
    /\ worker' = "idle" /\ done' = done + 1
    /\ UNCHANGED <<waiting, published, count, doorbell, channel, sick, old, pass, faults>>

Stop ==
    /\ count = 0 /\ worker = "retired"
    /\ worker' = "none"
    /\ UNCHANGED <<messages, count, doorbell, channel, sick, old, pass, faults>>

LeaseEnds ==
    /\ worker = "retired" /\ count = 1 /\ pc \notin {"install", "confirm", "lower"}
    /\ worker' = "idle"
    /\ UNCHANGED <<messages, count, doorbell, channel, sick, old, pass, faults>>

------------------------------------------------------------------------------
(* The doorbell. Its priority is the lowest, so a worker that is free comes first. *)

Deliver ==
    /\ consumer /\ msg = "no" /\ waiting > 0 /\ worker # "idle"
    /\ waiting' = waiting - 1 /\ msg' = "sent"
    /\ UNCHANGED <<published, done, worker, count, doorbell, consumer, call, sick, old, pass, faults>>

Prove ==
    /\ ~frozen /\ bell = "proving"
    /\ IF waiting > 0 THEN bell' = "none" /\ pending' = TRUE ELSE bell' = "queued" /\ UNCHANGED pending
    /\ UNCHANGED <<messages, worker, count, rings, channel, sick, old, pc, seen, faults>>

SendConsume ==
    /\ ~frozen /\ bell = "queued" /\ call = "none"
    /\ bell' = "consuming" /\ call' = "consume"
    /\ UNCHANGED <<messages, worker, count, rings, msg, consumer, sick, old, pass, faults>>

ConsumeOk ==
    /\ ~frozen /\ call = "consume"
    /\ consumer' = TRUE /\ call' = "none"
    /\ bell' = IF bell = "consuming" THEN "installed" ELSE bell
    /\ UNCHANGED <<messages, worker, count, rings, msg, sick, old, pass, faults>>

Arrive ==
    /\ ~frozen /\ msg = "sent" /\ ~Blocked
    /\ IF CancelFirst \/ bell # "installed"
        THEN msg' = "held" /\ UNCHANGED waiting
        ELSE msg' = "no" /\ waiting' = waiting + 1
    /\ rings' = (rings \/ bell = "installed")
    /\ bell' = IF bell \in {"installed", "leaving"} THEN "cancelling" ELSE bell
    /\ UNCHANGED <<published, done, worker, count, consumer, call, sick, old, pass, faults>>

ProveLeaving ==
    /\ ~frozen /\ bell = "leaving"
    /\ bell' = "cancelling"
    /\ UNCHANGED <<messages, worker, count, rings, channel, sick, old, pass, faults>>

SendCancel ==
    /\ ~frozen /\ bell = "cancelling" /\ call = "none" /\ consumer
    /\ call' = "cancel"
    /\ UNCHANGED <<messages, worker, count, doorbell, msg, consumer, sick, old, pass, faults>>

CancelOk ==
    /\ ~frozen /\ call = "cancel" /\ msg # "sent"
    /\ call' = "none" /\ consumer' = FALSE
    /\ LET requeues == msg = "held" /\ (rings \/ RequeuesLate) IN
        /\ waiting' = waiting + One(requeues)
        /\ msg' = IF requeues THEN "no" ELSE msg
    /\ bell' = "none" /\ rings' = FALSE /\ pending' = (pending \/ rings)
    /\ UNCHANGED <<published, done, worker, count, sick, old, pc, seen, faults>>

------------------------------------------------------------------------------
(* A neighbour on the same channel: a quorum queue that may lose its majority, and then answers no call *)

NeighbourCall ==
    /\ ~frozen /\ call = "none" /\ bell \in {"installed", "cancelling"} /\ calls < MaxCalls
    /\ Proof => ~sick
    /\ call' = "neighbour" /\ calls' = calls + 1
    /\ UNCHANGED <<messages, worker, count, doorbell, msg, consumer, sick, old, pass, frozen, losses>>

NeighbourAnswer ==
    /\ ~frozen /\ call = "neighbour" /\ ~sick
    /\ call' = "none"
    /\ UNCHANGED <<messages, worker, count, doorbell, msg, consumer, sick, old, pass, faults>>

LoseMajority ==
    /\ ~sick
    /\ LostDuringCall \/ call # "neighbour"
    /\ sick' = TRUE
    /\ UNCHANGED <<messages, worker, count, doorbell, channel, old, pass, faults>>

RegainMajority ==
    /\ sick
    /\ sick' = FALSE
    /\ UNCHANGED <<messages, worker, count, doorbell, channel, old, pass, faults>>

(* The watchdog closes the channel. RabbitMQ does not read the close before the call has ended. *)
OnStuck ==
    /\ Watchdog /\ ~frozen /\ Blocked /\ old = NoChannel
    /\ old' = [why |-> "blocked", consumer |-> consumer, has |-> msg # "no"]
    /\ msg' = "no" /\ consumer' = FALSE /\ call' = "none"
    /\ bell' = IF Moves /\ bell \in {"installed", "queued"} THEN "proving" ELSE IF bell = "proving" THEN bell ELSE "none"
    /\ rings' = FALSE /\ pending' = (pending \/ rings)
    /\ UNCHANGED <<messages, worker, count, sick, pc, seen, faults>>

OldDeliver ==
    /\ old.consumer /\ ~old.has /\ waiting > 0 /\ worker # "idle"
    /\ waiting' = waiting - 1 /\ old' = [old EXCEPT !.has = TRUE]
    /\ UNCHANGED <<published, done, worker, count, doorbell, channel, sick, pass, faults>>

(* The call ends within minutes after the close, and the heartbeat of a frozen operator within seconds. *)
OldEnds ==
    /\ old.why = "blocked" \/ (old.why = "frozen" /\ Heartbeat)
    /\ waiting' = waiting + One(old.has) /\ old' = NoChannel
    /\ UNCHANGED <<published, done, worker, count, doorbell, channel, sick, pass, faults>>

------------------------------------------------------------------------------
(* The operator's passes *)

Remove ==
    /\ bell' = CASE bell \in {"proving", "queued"} -> "none"
                 [] bell = "consuming" -> "cancelling"
                 [] bell = "installed" -> "leaving"
                 [] OTHER -> bell

Gather ==
    /\ ~frozen /\ pc = "rest" /\ (pending \/ count = 1)
    /\ pc' = "decide" /\ pending' = FALSE
    /\ seen' = (waiting > 0 \/ worker = "busy")
    /\ UNCHANGED <<messages, worker, count, doorbell, channel, sick, old, faults>>

ScaleOut ==
    /\ ~frozen /\ pc = "decide" /\ count = 0 /\ seen
    /\ Remove
    /\ count' = 1 /\ pc' = "rest"
    /\ UNCHANGED <<messages, worker, rings, channel, sick, old, seen, pending, faults>>

Sleep ==
    /\ ~frozen /\ pc = "decide" /\ count = 0 /\ ~seen
    /\ bell' = IF bell = "none" THEN "proving" ELSE bell
    /\ pc' = "rest"
    /\ pending' = (pending \/ bell \in {"leaving", "cancelling"})
    /\ UNCHANGED <<messages, worker, count, rings, channel, sick, old, seen, faults>>

Hold ==
    /\ ~frozen /\ pc = "decide" /\ count = 1 /\ (seen \/ worker # "idle")
    /\ Remove
    /\ pc' = "rest"
    /\ UNCHANGED <<messages, worker, count, rings, channel, sick, old, seen, pending, faults>>

(* The step to zero *)

AskLast ==
    /\ ~frozen /\ pc = "decide" /\ count = 1 /\ ~seen /\ worker = "idle"
    /\ worker' = "retired" /\ pc' = "install"
    /\ UNCHANGED <<messages, count, doorbell, channel, sick, old, seen, pending, faults>>

InstallForZero ==
    /\ ~frozen /\ pc = "install"
    /\ bell' = IF bell = "none" THEN "proving" ELSE bell
    /\ pc' = "confirm"
    /\ UNCHANGED <<messages, worker, count, rings, channel, sick, old, seen, pending, faults>>

ConfirmEmpty ==
    /\ ~frozen /\ pc = "confirm"
    /\ IF waiting = 0 /\ bell = "installed"
        THEN pc' = "lower" /\ UNCHANGED <<bell, worker>>
        ELSE pc' = "rest" /\ Remove /\ worker' = "idle"
    /\ UNCHANGED <<messages, count, rings, channel, sick, old, seen, pending, faults>>

LowerToZero ==
    /\ ~frozen /\ pc = "lower"
    /\ count' = 0 /\ pc' = "decide" /\ seen' = FALSE
    /\ UNCHANGED <<messages, worker, doorbell, channel, sick, old, pending, faults>>

------------------------------------------------------------------------------
(* Faults *)

LoseConnection ==
    /\ losses < MaxLosses
    /\ losses' = losses + 1
    /\ waiting' = waiting + One(msg # "no")
    /\ msg' = "no" /\ consumer' = FALSE /\ call' = "none" /\ bell' = "none" /\ rings' = FALSE
    /\ pending' = (pending \/ PassAfterLoss)
    /\ UNCHANGED <<published, done, worker, count, sick, old, pc, seen, frozen, calls>>

Crash ==
    /\ losses < MaxLosses
    /\ losses' = losses + 1
    /\ waiting' = waiting + One(msg # "no")
    /\ msg' = "no" /\ consumer' = FALSE /\ call' = "none" /\ bell' = "none" /\ rings' = FALSE
    /\ pc' = "rest" /\ pending' = TRUE /\ frozen' = FALSE
    /\ UNCHANGED <<published, done, worker, count, sick, old, seen, calls>>

Freeze ==
    /\ ~frozen /\ losses < MaxLosses
    /\ losses' = losses + 1 /\ frozen' = TRUE
    /\ UNCHANGED <<messages, worker, count, doorbell, channel, sick, old, pass, calls>>

(* Another operator leads. RabbitMQ still has the channel of the frozen one. *)
TakeOver ==
    /\ frozen /\ old = NoChannel
    /\ old' = [why |-> "frozen", consumer |-> consumer, has |-> msg # "no"]
    /\ msg' = "no" /\ consumer' = FALSE /\ call' = "none" /\ bell' = "none" /\ rings' = FALSE
    /\ pc' = "rest" /\ pending' = TRUE /\ frozen' = FALSE
    /\ UNCHANGED <<messages, worker, count, sick, seen, losses, calls>>

------------------------------------------------------------------------------

Doorbells == Deliver \/ Prove \/ SendConsume \/ ConsumeOk \/ Arrive \/ ProveLeaving \/ SendCancel \/ CancelOk
    \/ NeighbourCall \/ NeighbourAnswer \/ LoseMajority \/ RegainMajority \/ OnStuck \/ OldDeliver \/ OldEnds

Passes == Gather \/ ScaleOut \/ Sleep \/ Hold \/ AskLast \/ InstallForZero \/ ConfirmEmpty \/ LowerToZero

Workers == Start \/ WorkerTake \/ WorkerDone \/ Stop \/ LeaseEnds

Next == Publish \/ Doorbells \/ Passes \/ Workers \/ LoseConnection \/ Crash \/ Freeze \/ TakeOver

Spec == Init /\ [][Next]_vars

(* No fairness for what may never happen: faults, and a neighbour that regains its majority. *)
Fair == Spec
    /\ WF_vars(Deliver) /\ WF_vars(Prove) /\ WF_vars(SendConsume) /\ WF_vars(ConsumeOk) /\ WF_vars(Arrive)
    /\ WF_vars(ProveLeaving) /\ WF_vars(SendCancel) /\ WF_vars(CancelOk)
    /\ WF_vars(NeighbourAnswer \/ OnStuck) /\ WF_vars(OldEnds)
    /\ WF_vars(Passes) /\ WF_vars(Start) /\ WF_vars(WorkerTake) /\ WF_vars(WorkerDone) /\ WF_vars(Stop)
    /\ WF_vars(LeaseEnds) /\ WF_vars(TakeOver)

(* No message is lost, and none exists twice. *)
EachMessageOnce ==
    waiting + One(msg # "no") + One(old.has) + One(worker = "busy") + done = published

(* A message that has rung does not ring again before its doorbell is gone. *)
NoEcho == ~(bell = "cancelling" /\ rings /\ msg = "sent")

(* The message of a healthy queue does not wait behind a call about another queue. *)
NeverBehindNeighbour == ~(Blocked /\ msg # "no")

(* A waiting message is seen by a worker or by a ring, and no message is held without end: each one is handled. *)
EachMessageHandled == \A n \in 1..MaxMessages : (published >= n) ~> (done >= n)
===============================================================================
