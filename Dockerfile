# syntax=docker/dockerfile:1
# One file, three services: build with --target router, expert or trainer. The router image also migrates the database.
#
# TORCH_BACKEND decides which build of torch uv takes: cpu by default, or a CUDA one such as cu130.
# EXTRAS=gpu adds bitsandbytes.

FROM python:3.11-slim-bookworm AS build
ARG TORCH_BACKEND=cpu
ARG EXTRAS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 UV_NO_CACHE=1
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
COPY services ./services
RUN python -m venv /opt/venv \
    && pip install uv==0.13.8 \
    && uv pip install --python /opt/venv --torch-backend "${TORCH_BACKEND}" -c constraints.txt -e ".[${EXTRAS}]"

FROM python:3.11-slim-bookworm AS runtime
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    AMOE_BASE_MODEL=/app/demo/base \
    AMOE_STORAGE__ROOT=/data/storage \
    AMOE_TELEMETRY__FORMAT=json \
    HF_HOME=/data/hub
RUN groupadd --gid 10001 amoe \
    && useradd --uid 10001 --gid amoe --no-create-home --shell /usr/sbin/nologin amoe \
    && install -d -o amoe -g amoe /data /data/storage /data/hub
WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
COPY demo ./demo
USER 10001:10001
VOLUME /data
STOPSIGNAL SIGTERM

FROM runtime AS expert
ENV AMOE_EXPERT_SERVICE__HOST=0.0.0.0
EXPOSE 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-m", "services.local_stack.health", "http://127.0.0.1:8001/ready"]
CMD ["python", "-m", "services.expert_service.main"]

FROM runtime AS trainer
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-m", "services.local_stack.health", "worker"]
CMD ["python", "-m", "services.trainer_worker.main"]

FROM runtime AS router
ENV AMOE_ROUTER_SERVICE__HOST=0.0.0.0 OMP_NUM_THREADS=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "services.local_stack.health", "http://127.0.0.1:8000/ready"]
CMD ["python", "-m", "services.router_service.main"]
