# One recipe, one target per service: docker build --target sender .
# What is built is what was tested: the lock's versions, each with its hash, nothing compiled.
# Sources get their permissions here: a checkout under umask 077 has them for its owner alone.

ARG PYTHON=python:3.11.13-slim-bookworm
ARG HAPROXY=haproxy:3.0.11

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
COPY --chmod=0755 docker/health /usr/local/bin/health
COPY --chmod=0755 common common
COPY --chmod=0644 pyproject.toml pyproject.toml
USER 10001:10001
STOPSIGNAL SIGTERM
# Alive, not ready: who restarts what is unhealthy must not restart a service that waits
# for its broker.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["health", "live"]

FROM base AS frontend
COPY --chmod=0755 frontend frontend
ENV PORT=3000 ALLOWED_HOSTS=frontend
EXPOSE 3000
CMD ["python", "-m", "frontend"]

FROM base AS queue_receiver
COPY --chmod=0755 queue_receiver queue_receiver
ENV PORT=8081 ALLOWED_HOSTS=queue_receiver
EXPOSE 8081
CMD ["python", "-m", "queue_receiver"]

FROM base AS sender
COPY --chmod=0755 sender sender
ENV PORT=8082 ALLOWED_HOSTS=sender
EXPOSE 8082
CMD ["python", "-m", "sender"]

FROM base AS database_service
COPY --chmod=0755 sql sql
COPY --chmod=0755 database_service database_service
ENV PORT=8083 ALLOWED_HOSTS=database_service
EXPOSE 8083
CMD ["python", "-m", "database_service"]

FROM base AS report_generator
COPY --chmod=0755 report_generator report_generator
ENV PORT=8084 ALLOWED_HOSTS=report_generator
EXPOSE 8084
CMD ["python", "-m", "report_generator"]

# Connects the published ports to whatever instances there are.
FROM ${HAPROXY} AS gateway
COPY --chmod=0644 docker/haproxy.cfg /usr/local/etc/haproxy/haproxy.cfg
COPY --chmod=0755 docker/health /usr/local/bin/health
# Healthy where the form behind it answers, through itself.
ENV PORT=3000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["health", "live"]

# Runs once before the others: passwords, and all that the broker reads at start.
FROM base AS provision
COPY --chmod=0755 rabbitmq rabbitmq
USER 0
RUN install --directory --owner userstream --group userstream --mode 0700 /secrets \
    && install --directory --owner userstream --group userstream /broker /mails \
        /distributed /distributed/frontend /distributed/queue_receiver /distributed/sender \
        /distributed/report_generator /distributed/database_service /distributed/postgres
USER 10001:10001
HEALTHCHECK NONE
CMD ["python", "-m", "rabbitmq.provision", "--configuration", "/broker", \
     "--definitions", "/broker/definitions", "--secrets", "/secrets", \
     "--distribute", "/distributed", "--host", "rabbitmq"]
