# An image with another language, here Java: the worker is one file, and the handler a command (`exec`). It needs
# python3 from the packages of the image, and no pip.
FROM docker.io/library/eclipse-temurin:21-jdk-noble@sha256:b468c3fc688b14450571494f588bd939378e7fd542ed5a73f8efc13f17872a87
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --chmod=755 workqueue-*.pyz /usr/local/bin/workqueue
ENV PYTHONUNBUFFERED=1
WORKDIR /app
COPY Handler.java /app/
USER 65532:65532
