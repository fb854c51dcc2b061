# A server of runs, without root: docs/deploy.md. tests/test_container.py checks and runs these commands.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE hatch_build.py train.py sample.py ./
COPY charlm charlm
COPY data data
COPY kernels kernels
COPY makemore makemore
COPY nanogpt nanogpt
COPY engine engine
COPY finetune finetune
COPY export export
COPY serve serve
COPY tune tune
COPY explain explain
COPY forecast forecast
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.13-slim
# The index of PyTorch's CPU builds, which its own install page names: 0.8 GB. Without it pip takes the CUDA build: 4.6 GB.
ARG TORCH_INDEX=""
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.11"
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/charlm-*.whl)[serve]"
RUN useradd --create-home charlm && mkdir /runs && chown charlm /runs
USER charlm
# Commands find and make runs in /runs, as from a folder that holds runs/.
WORKDIR /
VOLUME /runs
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["charlm"]
CMD ["serve", "--host", "0.0.0.0"]
