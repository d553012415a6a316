# syntax=docker/dockerfile:1

# One recipe, one target per service: docker build --target sender .
# What is built is what was tested: the lock's versions, each with its hash, nothing compiled.

ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS packages
COPY requirements/runtime.lock /runtime.lock
RUN python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --require-hashes --only-binary :all: --requirement /runtime.lock

FROM ${PYTHON} AS base
# Nothing is installed in a running container; the tools for it would only serve an intruder.
# The folders are what volumes are mounted on; an empty volume takes over their owner.
RUN pip uninstall --yes --root-user-action ignore setuptools wheel pip \
    && groupadd --gid 10001 userstream \
    && useradd --uid 10001 --gid userstream --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin userstream \
    && install --directory --owner userstream --group userstream --mode 0750 /reports /notes
COPY --from=packages /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNODEBUGRANGES=1 \
    MALLOC_ARENA_MAX=1 \
    MALLOC_TRIM_THRESHOLD_=131072 \
    BIND_ADDRESS=0.0.0.0 \
    LOG_FORMAT=json
WORKDIR /app
COPY common common
USER 10001:10001
STOPSIGNAL SIGTERM
# Alive, not ready: who restarts what is unhealthy must not restart a service that waits
# for its broker.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/health/live', timeout=3)"]

FROM base AS frontend
COPY frontend frontend
ENV PORT=3000 ALLOWED_HOSTS=frontend
EXPOSE 3000
CMD ["python", "-m", "frontend"]

FROM base AS queue_receiver
COPY queue_receiver queue_receiver
ENV PORT=8081 ALLOWED_HOSTS=queue_receiver
EXPOSE 8081
CMD ["python", "-m", "queue_receiver"]

FROM base AS sender
COPY sender sender
ENV PORT=8082 ALLOWED_HOSTS=sender
EXPOSE 8082
CMD ["python", "-m", "sender"]

FROM base AS database_service
COPY sql sql
COPY database_service database_service
ENV PORT=8083 ALLOWED_HOSTS=database_service
EXPOSE 8083
CMD ["python", "-m", "database_service"]

FROM base AS report_generator
COPY report_generator report_generator
ENV PORT=8084 ALLOWED_HOSTS=report_generator
EXPOSE 8084
CMD ["python", "-m", "report_generator"]

# Runs once before the others: passwords, broker users, topology.
FROM base AS provision
COPY rabbitmq rabbitmq
USER 0
RUN install --directory --owner userstream --group userstream --mode 0700 /secrets \
    && install --directory --owner userstream --group userstream /definitions \
        /hand-out /hand-out/frontend /hand-out/queue_receiver /hand-out/sender \
        /hand-out/report_generator /hand-out/database_service /hand-out/postgres
USER 10001:10001
HEALTHCHECK NONE
CMD ["python", "-m", "rabbitmq.provision", "--definitions", "/definitions", \
     "--secrets", "/secrets", "--hand-out", "/hand-out", "--host", "rabbitmq"]
