"""Write the command lines and configuration files of the cluster's programs.

All paths are paths inside the cluster's mount namespace, which has its own /var, /run and /tmp.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from hack.cluster import pki
from hack.cluster.errors import ClusterError
from hack.cluster.instance import Instance
from hack.cluster.mounts import overlays_stack_on

NODE: Final = "node0"
ADDRESS: Final = "10.200.0.1"
API_PORT: Final = 6443
POD_NETWORK: Final = "10.244.0.0/16"
SERVICE_NETWORK: Final = "10.96.0.0/16"
KUBERNETES_SERVICE: Final = "10.96.0.1"
CLUSTER_DOMAIN: Final = "cluster.local"
PAUSE_IMAGE: Final = "localhost/pause:1"

CONFIGURATION: Final = "/var/lib/kubernetes"
PKI: Final = f"{CONFIGURATION}/pki"
CONTAINERD: Final = "/run/containerd/containerd.sock"
BINARIES: Final = "/run/bin"
BRIDGE_SETTINGS: Final = Path("/proc/sys/net/bridge")
CNI_PLUGINS: Final = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
ETCD: Final = "http://127.0.0.1:2379"
# In start order.
NAMES: Final = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "containerd",
    "kubelet",
    "kube-proxy",
    "coredns",
    "forward",
)


def configure(instance: Instance) -> None:
    """Make the certificates and configuration files of a new cluster in its state folder.

    Raises:
        ClusterError: openssl failed, or the network plugins are not installed.
    """
    folder = instance.configuration
    pki.make(folder / "pki", node=NODE, address=ADDRESS, service_address=KUBERNETES_SERVICE)
    server = f"https://{ADDRESS}:{API_PORT}"
    for user in (*pki.SUBJECTS, "kubelet"):
        _write(folder / f"{user}.kubeconfig", pki.kubeconfig(folder / "pki", user, server, instance.name))
    _write(
        folder / "containerd.toml",
        _containerd("overlayfs" if overlays_stack_on(instance.state) else "native"),
    )
    _write(folder / "cni/10-bridge.conflist", json.dumps(_bridge(), indent=2))
    _write(folder / "kubelet.json", json.dumps(_kubelet(instance.cgroup), indent=2))
    _write(folder / "kube-proxy.json", json.dumps(_kube_proxy(), indent=2))
    _write(folder / "Corefile", _corefile())
    _write(instance.state / "daemons.json", json.dumps(_commands(), indent=2))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(text)


def _commands() -> dict[str, list[str]]:
    """Return the command line of each of `NAMES`."""

    def client(user: str) -> list[str]:
        file = f"{CONFIGURATION}/{user}.kubeconfig"
        return [
            f"--kubeconfig={file}",
            f"--authentication-kubeconfig={file}",
            f"--authorization-kubeconfig={file}",
            "--leader-elect=false",
        ]

    return {
        "etcd": [
            f"{BINARIES}/etcd",
            "--data-dir=/var/lib/etcd",
            "--unsafe-no-fsync",
            f"--listen-client-urls={ETCD}",
            f"--advertise-client-urls={ETCD}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--log-level=warn",
        ],
        "kube-apiserver": [
            f"{BINARIES}/kube-apiserver",
            f"--advertise-address={ADDRESS}",
            f"--secure-port={API_PORT}",
            f"--etcd-servers={ETCD}",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            f"--tls-cert-file={PKI}/apiserver.crt",
            f"--tls-private-key-file={PKI}/apiserver.key",
            f"--client-ca-file={PKI}/ca.crt",
            f"--service-account-key-file={PKI}/service-accounts.pub",
            f"--service-account-signing-key-file={PKI}/service-accounts.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--kubelet-client-certificate={PKI}/admin.crt",
            f"--kubelet-client-key={PKI}/admin.key",
            "--kubelet-preferred-address-types=InternalIP",
            f"--requestheader-client-ca-file={PKI}/front-proxy-ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={PKI}/front-proxy-client.crt",
            f"--proxy-client-key-file={PKI}/front-proxy-client.key",
            "--profiling=false",
        ],
        "kube-controller-manager": [
            f"{BINARIES}/kube-controller-manager",
            *client("controller-manager"),
            f"--service-account-private-key-file={PKI}/service-accounts.key",
            f"--root-ca-file={PKI}/ca.crt",
            "--use-service-account-credentials",
            f"--cluster-cidr={POD_NETWORK}",
            "--allocate-node-cidrs=true",
            f"--cluster-signing-cert-file={PKI}/ca.crt",
            f"--cluster-signing-key-file={PKI}/ca.key",
            "--kube-api-qps=100",
            "--kube-api-burst=200",
        ],
        "kube-scheduler": [f"{BINARIES}/kube-scheduler", *client("scheduler")],
        "containerd": ["containerd", f"--config={CONFIGURATION}/containerd.toml"],
        "kubelet": [
            f"{BINARIES}/kubelet",
            f"--config={CONFIGURATION}/kubelet.json",
            f"--kubeconfig={CONFIGURATION}/kubelet.kubeconfig",
            f"--node-ip={ADDRESS}",
            f"--hostname-override={NODE}",
        ],
        "kube-proxy": [f"{BINARIES}/kube-proxy", f"--config={CONFIGURATION}/kube-proxy.json"],
        "coredns": [f"{BINARIES}/coredns", "-conf", f"{CONFIGURATION}/Corefile"],
        "forward": [f"{BINARIES}/forward", f"{ADDRESS}:{API_PORT}"],
    }


def _containerd(snapshotter: str) -> str:
    # restrict_oom_score_adj: lowering a score needs CAP_SYS_RESOURCE, which many sandboxes lack.
    # disable_apparmor: profiles belong to the whole machine and would outlive the cluster.
    return f"""\
version = 2

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{_cni_plugins()}"
    conf_dir = "{CONFIGURATION}/cni"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


def _cni_plugins() -> Path:
    for folder in CNI_PLUGINS:
        if (folder / "bridge").exists():
            return folder
    folders = " or ".join(map(str, CNI_PLUGINS))
    raise ClusterError(f"The container network plugins are missing. Install them in {folders}.")


def _bridge() -> dict[str, object]:
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": POD_NETWORK}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _kubelet(cgroup: str) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{PKI}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{PKI}/kubelet.crt",
        "tlsPrivateKeyFile": f"{PKI}/kubelet.key",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "resolvConf": "",
        "clusterDNS": [ADDRESS],
        "clusterDomain": CLUSTER_DOMAIN,
        "maxPods": 250,
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
        "serializeImagePulls": False,
        # Images come from archives and cannot be pulled again, so the kubelet must never remove one to free space.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
    }


def _kube_proxy() -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{CONFIGURATION}/proxy.kubeconfig"},
        "mode": "iptables",
        "clusterCIDR": POD_NETWORK,
        "hostnameOverride": NODE,
        # If bridged traffic bypasses the firewall, the reply of a pod on the same node would miss the rules.
        "iptables": {"masqueradeAll": not BRIDGE_SETTINGS.exists()},
        # The host owns the size of the connection table.
        "conntrack": {"maxPerCore": 0, "min": 0},
    }


def _corefile() -> str:
    return f"""\
.:53 {{
  bind {ADDRESS}
  kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
    kubeconfig {CONFIGURATION}/admin.kubeconfig
  }}
  cache 5
}}
"""
