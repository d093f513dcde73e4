"""What can happen to a cluster of three RabbitMQ nodes with quorum queues: leaders, nodes and the majority die."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.faults.report import Report
from tests.faults.test_limits import LIMIT, RECLAIM_SECONDS, WORKERS, Limited
from tests.faults.work import QUEUE, Work
from tests.support.limits import make_tokens
from tests.support.rabbitmq import RELEASES, VirtualHost
from tests.support.rabbitmq_cluster import RabbitCluster, rabbit_cluster
from tests.support.wait import eventually
from tests.support.worker import Workers
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.contract.binding import from_url
from workqueue.contract.topology import dead_letter_queue

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module", params=list(RELEASES), ids=lambda series: f"RabbitMQ {series}")
def cluster(request: pytest.FixtureRequest) -> Iterator[RabbitCluster]:
    """Three nodes."""
    with rabbit_cluster(request.param) as made:
        yield made


@pytest.fixture
def queues(cluster: RabbitCluster, workers: Workers, report: Report) -> Iterator[Work]:
    """Queues, and a publisher that knows the addresses of all nodes."""
    with cluster.nodes[0].new_vhost() as vhost:
        made = Work(
            vhost,
            workers,
            report,
            url=cluster.url(vhost.name),
            connect=lambda: cluster.connect(vhost.name),
        )
        made.declare()
        for node in cluster.nodes:
            node.save_queues()
        yield made
        cluster.start_missing()


@pytest.fixture
def work(queues: Work) -> Work:
    """Workers that know the addresses of all nodes, too."""
    queues.start(2)
    return queues


def test_work_survives_loss_of_quorum_queue_leader(work: Work, cluster: RabbitCluster) -> None:
    with work.through("leader of a quorum queue lost", within=60):
        for _ in range(3):
            cluster.leader_of(QUEUE, work.vhost.name).kill_leader(QUEUE, work.vhost.name)
            work.await_done(20)


def test_work_survives_killed_leader_node(work: Work, cluster: RabbitCluster) -> None:
    """The workers are connected to it, too. Work goes on without it."""
    with work.through("leader's node of three killed (-9)", within=60):
        node = cluster.leader_of(QUEUE, work.vhost.name)
        node.kill()
        work.vhost = VirtualHost(cluster.running[0], work.vhost.name)
        work.await_done(40, 60)
        # All have ended, retried ones included. From RabbitMQ 4.3, deliveries of a consumer on the lost node are
        # redelivered after a minute.
        with work.quiet(90):
            node.start()


@pytest.mark.timeout(500)
def test_limit_holds_while_the_node_of_its_tokens_is_down(queues: Work, cluster: RabbitCluster) -> None:
    """Handlers of workers on other nodes run on, and take the first tokens when the node is back."""
    work, vhost = queues, queues.vhost.name
    node = cluster.leader_of(QUEUE, vhost)
    other = next(one for one in cluster.nodes if one is not node)
    make_tokens(VirtualHost(node, vhost), LIMIT)
    limited = Limited(work)
    limited.start(WORKERS // 2, url=cluster.url(vhost, first=node))
    limited.start(WORKERS // 2, url=cluster.url(vhost, first=other))
    with work.through("concurrency limit: leader's node of three killed (-9)", within=200):
        limited.keep_busy(LIMIT, do="sleep", seconds=RECLAIM_SECONDS + 25)
        node.kill()
        work.vhost, killed_at = VirtualHost(other, vhost), time.monotonic()
        eventually(lambda: time.monotonic() > killed_at + RECLAIM_SECONDS + 5, RECLAIM_SECONDS + 10)
        node.start()

    assert limited.most() == LIMIT
    limited.await_tokens()


def test_work_survives_killed_majority(work: Work, cluster: RabbitCluster) -> None:
    """Nothing is confirmed meanwhile, and nothing that was confirmed is lost."""
    with work.through("two nodes of three killed (-9)", within=90):
        *killed, left = cluster.nodes
        work.vhost = VirtualHost(left, work.vhost.name)
        for node in killed:
            node.kill()
        eventually(lambda: work.connected == len(work.workers), 60)
        cluster.start_missing()


def test_publisher_finds_new_leader_of_quorum_queue(work: Work, cluster: RabbitCluster) -> None:
    """On RabbitMQ 3.10 its first channel is refused everything until the node is back."""
    node = cluster.leader_of(QUEUE, work.vhost.name)
    left = next(other for other in cluster.running if other is not node)
    source = from_url(left.url_of(work.vhost.name))
    with PublishPipeline(lambda: source, "test") as publisher:
        publisher.declare(dead_letter_queue(QUEUE)).result()  # so that it is connected
        node.kill()
        work.vhost = VirtualHost(left, work.vhost.name)
        job = Outgoing(QUEUE, json.dumps({"id": "first"}).encode())
        eventually(lambda: publisher.publish(job).exception() is None)
    work.ledger.sent("first")
    work.balance("publisher meets a queue without a leader", time.monotonic(), within=60)
