# Likeness on any machine with Docker: docker build -t likeness . && docker run -p 7860:7860 -v likeness:/data likeness
# With an NVIDIA GPU: docker build --build-arg GPU=1 -t likeness . && docker run --gpus all ...
FROM python:3.12-slim

ARG GPU=
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 GRADIO_ANALYTICS_ENABLED=False

COPY packages.txt /tmp/packages.txt
RUN apt-get update && xargs -a /tmp/packages.txt apt-get install -y --no-install-recommends \
    && rm -rf /var/lib/apt/lists/*

# The person whose face it is trusts this process: it runs as nobody in particular and owns nothing but /data.
RUN useradd --uid 1000 --create-home likeness && mkdir /data && chown likeness /data
WORKDIR /app
COPY requirements.txt requirements-gpu.txt ./
RUN if [ -z "$GPU" ]; then \
      pip install --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.txt; \
    else pip install -r requirements.txt -r requirements-gpu.txt; fi
COPY . .

USER likeness
ENV LIKENESS_HOME=/data HF_HOME=/data/hub GRADIO_TEMP_DIR=/data/uploads \
    GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860
VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/', timeout=4)"
CMD ["python", "app.py"]
