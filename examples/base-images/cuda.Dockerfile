# A Debian or Ubuntu image with a Python of its own, such as NVIDIA's for CUDA. Python must be 3.11 or later.
# The build context has the wheel of the worker. --system-site-packages lets handlers import what the image has.
FROM docker.io/nvidia/cuda:12.9.1-base-ubuntu24.04@sha256:5d2e53778e2180e01676aa8bac1aada242e95230ec97e21ecfb33de4e27cd1df
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY workqueue_operator-*.whl /tmp/
RUN python3 -m venv --system-site-packages /opt/workqueue \
    && /opt/workqueue/bin/pip install --no-cache-dir /tmp/workqueue_operator-*.whl \
    && rm /tmp/workqueue_operator-*.whl
ENV PATH=/opt/workqueue/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /app
COPY handlers.py /app/
USER 65532:65532
