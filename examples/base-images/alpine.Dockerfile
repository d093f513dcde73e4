# Alpine: the worker and the libraries that it needs are pure Python, so the same wheel works with musl.
FROM docker.io/library/alpine:3.22@sha256:14358309a308569c32bdc37e2e0e9694be33a9d99e68afb0f5ff33cc1f695dce
RUN apk add --no-cache python3
COPY workqueue_operator-*.whl /tmp/
RUN python3 -m venv /opt/workqueue \
    && /opt/workqueue/bin/pip install --no-cache-dir /tmp/workqueue_operator-*.whl \
    && rm /tmp/workqueue_operator-*.whl
ENV PATH=/opt/workqueue/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /app
COPY handlers.py /app/
USER 65532:65532
