# One image for the operator and the workers. Build it with docker, or with buildah and --isolation chroot. The base
# only needs python3 (3.11 or later) with venv. A build with another BASE_IMAGE never pulls the pinned one.
ARG BASE_IMAGE=pinned

FROM docker.io/library/python:3.13-slim@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b AS pinned

FROM ${BASE_IMAGE} AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/venv
COPY requirements.lock /src/
RUN /opt/venv/bin/pip install --require-hashes --no-deps --no-compile --requirement /src/requirements.lock
# Compile once here: at run time the root file system is read-only, and each start is faster. Unchecked, because tools
# that copy layers may change the time stamps that a check would use.
RUN /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib

FROM dependencies AS project
COPY requirements-build.lock /src/
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --no-deps --requirement /src/requirements-build.lock
COPY pyproject.toml README.md LICENSE /src/
COPY kubectl /src/kubectl
COPY operator /src/operator
COPY worker /src/worker
# A separate tree, so that a change of the project changes only a small layer of the image.
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /src/dist /src \
    && /opt/venv/bin/pip install --no-deps --no-compile --prefix /opt/project /src/dist/*.whl \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash \
        -s /opt/project -p /opt/venv /opt/project/lib

FROM ${BASE_IMAGE}
# Libraries look up the user's name, and the user id may be any number, without an entry in /etc/passwd.
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LOGNAME=workqueue \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=project /opt/project /opt/venv
# An image that is built from this one puts its handlers here.
RUN mkdir /app
WORKDIR /app
USER 65532:65532
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="workqueue-operator" \
      org.opencontainers.image.description="Job queues on Kubernetes: durable RabbitMQ queues, workers scaled by queue depth, no job lost." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
CMD ["workqueue", "--help"]
